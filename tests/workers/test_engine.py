"""One engine, many weights: swapped in place, verified, and started anew only when it must be."""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from services.cli.ports import port_of, reserve
from shared.settings import get_settings
from tests.scripted_engine import ScriptedEngine, running
from tests.waiting import until
from tests.workers import tiny_model
from workers.engine import Engine, EngineStartError, ModelWeights, SwapError
from workers.engine_admin import EngineAdmin
from workers.model_folder import write_probe
from workers.weights import weights_sha256


def weights(folder: Path) -> ModelWeights:
    return ModelWeights(folder.name, folder, weights_sha256(folder))


def changed(folder: Path, to: Path) -> Path:
    """The same architecture with other weights, and the trainer's probe of these."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    write_probe(to)
    return to


def figures() -> list[float]:
    """Swaps that were verified, that failed, and those whose seconds are known."""
    return [
        REGISTRY.get_sample_value("forethought_engine_swaps_total", {"outcome": "verified"}) or 0,
        REGISTRY.get_sample_value("forethought_engine_swaps_total", {"outcome": "failed"}) or 0,
        REGISTRY.get_sample_value("forethought_engine_swap_seconds_count") or 0,
    ]


class TestSwap:
    """Against a server that can lie."""

    @pytest.fixture
    def one(self, tmp_path: Path) -> Path:
        folder = tiny_model.write(tmp_path / "one")
        write_probe(folder)
        return folder

    @pytest.fixture
    def other(self, one: Path, tmp_path: Path) -> Path:
        return changed(one, tmp_path / "other")

    @pytest.fixture
    def server(self, one: Path) -> ScriptedEngine:
        return ScriptedEngine(one, lambda *_: "x")

    @pytest.fixture
    def engine(self, server: ScriptedEngine) -> Iterator[Engine]:
        with running(server) as url:
            engine = Engine(0, "engine", url)
            yield engine
            engine.close()

    def test_it_serves_what_it_was_given(
        self, engine: Engine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        for folder in (one, other, one):
            engine.ensure(weights(folder))
            assert (server.weights, server.label) == (folder, weights(folder).sha256)
            assert engine.serving == weights(folder)

    def test_swaps_are_counted_by_their_outcome(
        self, engine: Engine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        before = figures()
        engine.ensure(weights(one))
        server.broken_swap = True
        with pytest.raises(SwapError):
            engine.ensure(weights(other))
        assert [now - then for now, then in zip(figures(), before, strict=True)] == [1, 1, 1]

    def test_equal_weights_are_not_swapped(
        self, engine: Engine, server: ScriptedEngine, one: Path, tmp_path: Path
    ) -> None:
        engine.ensure(weights(one))
        shutil.copytree(one, tmp_path / "copy")
        engine.ensure(weights(tmp_path / "copy"))
        assert server.weights == one

    def test_a_swap_that_did_nothing_is_found_out(
        self, engine: Engine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        engine.ensure(weights(one))
        server.broken_swap = True
        with pytest.raises(SwapError, match="did not change"):
            engine.ensure(weights(other))
        assert engine.serving is None

    def test_weights_unlike_the_trainers_are_found_out(
        self, engine: Engine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        engine.ensure(weights(one))
        probe = json.loads((other / "probe.json").read_text())
        probe["logprobs"] = [value - 1 for value in probe["logprobs"]]
        server.probes = {tuple(probe["token_ids"]): [-9.0] * len(probe["logprobs"])}
        with pytest.raises(SwapError, match="nats off the trainer's"):
            engine.ensure(weights(other))


@pytest.mark.vllm
@pytest.mark.slow
class TestRealServer:
    @pytest.fixture
    def engine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
        monkeypatch.setenv("FORETHOUGHT_LOG_DIR", str(tmp_path))
        monkeypatch.setenv("FORETHOUGHT_MAX_MODEL_LEN", "512")
        get_settings.cache_clear()
        with reserve() as port:
            engine = Engine(port_of(port), "engine")
            yield engine
            engine.close()
        get_settings.cache_clear()

    def test_an_engine_that_does_not_start_shows_its_last_lines(
        self, engine: Engine, bundled: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORETHOUGHT_ENGINE_ARGS", "--no-such-flag")
        get_settings.cache_clear()
        with pytest.raises(EngineStartError, match=r"(?s)exited with 2.*--no-such-flag"):
            engine.ensure(weights(bundled))

    @pytest.mark.timeout(400)
    def test_weights_are_swapped_in_place(
        self, engine: Engine, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A machine need not have a compiler, nor any other tool but what vLLM asks for its cores.
        lscpu = shutil.which("lscpu")
        assert lscpu is not None
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "lscpu").symlink_to(lscpu)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        other = changed(bundled, tmp_path / "other")
        for folder in (bundled, other, bundled):
            engine.ensure(weights(folder))
            label = httpx2.get(f"{engine.url}/weight_info").json()["weight_version"]
            assert label == weights(folder).sha256
        assert engine.starts == 1
        engine.check(20)

    @pytest.mark.timeout(400)
    def test_what_waits_behind_a_swap_does_not_go_on_with_other_weights(
        self, engine: Engine, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORETHOUGHT_ENGINE_ARGS", "--max-num-seqs 1")
        get_settings.cache_clear()
        engine.ensure(weights(bundled))
        other = changed(bundled, tmp_path / "other")
        body = {"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "temperature": 0}

        def ask() -> str:
            answer = httpx2.post(f"{engine.url}/v1/completions", json=body, timeout=120)
            return str(answer.json()["choices"][0]["finish_reason"])

        with ThreadPoolExecutor() as pool:
            under_way = pool.submit(ask)
            until(lambda: not engine.idle(), "it runs")
            waiting = pool.submit(ask)
            time.sleep(1)
            with closing(EngineAdmin(engine.url)) as admin:
                admin.swap(str(other), "other")
        assert under_way.result() == "length"
        assert waiting.result() == "abort"
