"""One engine, many weights: swapped in place, verified, and started anew only when it must be."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest
from prometheus_client import REGISTRY

from services.cli.ports import port_of, reserve
from shared.settings import get_settings
from tests.scripted_engine import ScriptedEngine, running
from tests.waiting import until
from tests.workers import tiny_model
from workers.engine import Engine, EngineStartError, ModelWeights, SwapError
from workers.engine_admin import EngineAdmin, EngineTimeout
from workers.model_folder import write_probe
from workers.weights import weights_sha256


def weights(folder: Path) -> ModelWeights:
    return ModelWeights(folder.name, folder, weights_sha256(folder))


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
        return tiny_model.changed(one, tmp_path / "other")

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

    def test_an_engine_that_answers_nothing_is_hung_unless_others_get_tokens(
        self, engine: Engine, server: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.hangs = True
        with pytest.raises(EngineTimeout):
            engine.check(0.2)
        done = itertools.count()
        monkeypatch.setattr(engine._admin, "tokens_done", lambda: next(done))
        engine.check(0.2)


@contextmanager
def real_engine(folder: Path, engine_args: str, **env: str) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch, reserve() as port:
        patch.setenv("FORETHOUGHT_LOG_DIR", str(folder))
        patch.setenv("FORETHOUGHT_MAX_MODEL_LEN", "512")
        patch.setenv("FORETHOUGHT_ENGINE_ARGS", engine_args)
        for name, value in env.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        engine = Engine(port_of(port), "engine")
        try:
            yield engine
        finally:
            engine.close()
            get_settings.cache_clear()


@pytest.fixture(scope="module")
def real(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Serves the bundled model to one request at a time."""
    folder = tmp_path_factory.mktemp("engine")
    # A machine need not have a compiler, nor any other tool but what vLLM asks for its cores.
    lscpu = shutil.which("lscpu")
    assert lscpu is not None
    (folder / "bin").mkdir()
    (folder / "bin" / "lscpu").symlink_to(lscpu)
    with real_engine(folder, "--max-num-seqs 1", PATH=str(folder / "bin")) as engine:
        engine.ensure(weights(bundled))
        yield engine


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(400)
class TestRealServer:
    def test_an_engine_that_does_not_start_shows_its_last_lines(
        self, bundled: Path, tmp_path: Path
    ) -> None:
        with (
            real_engine(tmp_path, "--no-such-flag") as engine,
            pytest.raises(EngineStartError, match=r"(?s)exited with 2.*--no-such-flag"),
        ):
            engine.ensure(weights(bundled))

    def test_weights_are_swapped_in_place(
        self, real: Engine, bundled: Path, tmp_path: Path
    ) -> None:
        other = tiny_model.changed(bundled, tmp_path / "other")
        for folder in (bundled, other, bundled):
            real.ensure(weights(folder))
            label = httpx2.get(f"{real.url}/weight_info").json()["weight_version"]
            assert label == weights(folder).sha256
        assert real.starts == 1
        real.check(20)

    def test_what_waits_behind_a_swap_does_not_go_on_with_other_weights(
        self, real: Engine, bundled: Path, tmp_path: Path
    ) -> None:
        other = tiny_model.changed(bundled, tmp_path / "other")
        body = {"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "temperature": 0}

        def ask() -> str:
            answer = httpx2.post(f"{real.url}/v1/completions", json=body, timeout=120)
            return str(answer.json()["choices"][0]["finish_reason"])

        with ThreadPoolExecutor() as pool, closing(EngineAdmin(real.url)) as admin:
            under_way = pool.submit(ask)
            until(lambda: not real.idle(), "it runs")
            waiting = pool.submit(ask)
            time.sleep(1)
            admin.swap(str(other), "other")
            assert under_way.result() == "length"
            assert waiting.result() == "abort"
            admin.swap(str(bundled), weights(bundled).sha256)  # as it was
