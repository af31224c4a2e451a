"""One engine, many weights: swapped in place, verified, and started anew only when it must be."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from tests.support import tiny_model
from tests.support.scripted_engine import ScriptedEngine, running
from workers.engine.admin import EngineTimeout, SwapError
from workers.engine.engine import ManagedEngine
from workers.models.folder import write_probe


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
    def engine(self, server: ScriptedEngine) -> Iterator[ManagedEngine]:
        with running(server) as url:
            engine = ManagedEngine(0, "engine", url)
            yield engine
            engine.close()

    def test_it_serves_what_it_was_given(
        self, engine: ManagedEngine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        for folder in (one, other, one):
            engine.ensure(tiny_model.weights(folder))
            assert (server.weights, server.label) == (folder, tiny_model.weights(folder).sha256)
            assert engine.serving == tiny_model.weights(folder)

    def test_swaps_are_counted_by_their_outcome(
        self, engine: ManagedEngine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        before = figures()
        engine.ensure(tiny_model.weights(one))
        server.broken_swap = True
        with pytest.raises(SwapError):
            engine.ensure(tiny_model.weights(other))
        assert [now - then for now, then in zip(figures(), before, strict=True)] == [1, 1, 1]

    def test_equal_weights_are_not_swapped(
        self, engine: ManagedEngine, server: ScriptedEngine, one: Path, tmp_path: Path
    ) -> None:
        engine.ensure(tiny_model.weights(one))
        shutil.copytree(one, tmp_path / "copy")
        engine.ensure(tiny_model.weights(tmp_path / "copy"))
        assert server.weights == one

    def test_a_swap_that_did_nothing_is_found_out(
        self, engine: ManagedEngine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        engine.ensure(tiny_model.weights(one))
        server.broken_swap = True
        with pytest.raises(SwapError, match="did not change"):
            engine.ensure(tiny_model.weights(other))
        assert engine.serving is None

    def test_weights_unlike_the_trainers_are_found_out(
        self, engine: ManagedEngine, server: ScriptedEngine, one: Path, other: Path
    ) -> None:
        engine.ensure(tiny_model.weights(one))
        probe = json.loads((other / "probe.json").read_text())
        probe["logprobs"] = [value - 1 for value in probe["logprobs"]]
        server.probes = {tuple(probe["token_ids"]): [-9.0] * len(probe["logprobs"])}
        with pytest.raises(SwapError, match="nats off the trainer's"):
            engine.ensure(tiny_model.weights(other))

    def test_an_engine_that_answers_nothing_is_hung_unless_others_get_tokens(
        self, engine: ManagedEngine, server: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.hangs = True
        with pytest.raises(EngineTimeout):
            engine.check(0.2)
        done = itertools.count()
        monkeypatch.setattr(engine._admin, "tokens_done", lambda: next(done))
        engine.check(0.2)
