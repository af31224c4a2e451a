"""An engine that no longer works is found out and started anew; chat is told so meanwhile."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import sqlalchemy

from services.cli.machine.ports import port_of, reserve
from shared.db import engine as db
from shared.db.engine import transaction
from shared.db.tables import Serving
from shared.settings import Settings, get_settings
from tests.support import factories, tiny_model
from tests.support.data_servers import empty_tables
from tests.support.waiting import until
from workers.engine import inference
from workers.engine import process as engine_process
from workers.engine.admin import EngineTimeout
from workers.engine.engine import ManagedEngine
from workers.engine.inference import Inference
from workers.models.weights import weights_sha256

pytestmark = pytest.mark.slow
NOTICE_SECONDS = 30.0


def scripted(_: Settings, model: Path, host: str, port: int) -> Sequence[str]:
    options = ["--model", str(model), "--host", host, "--port", str(port), "--tokens", "40"]
    return [sys.executable, "-m", "tests.support.scripted_engine", *options]


@dataclass
class Watched:
    """An engine that serves what is promoted, under supervision."""

    engine: ManagedEngine
    folder: Path
    """Of the model that was promoted first."""
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def promote(self, folder: Path) -> None:
        with transaction() as session:
            factories.model(
                session,
                version=next(self.versions),
                path=str(folder),
                weights_sha256=weights_sha256(folder),
                promoted_at=sqlalchemy.func.now(),
            )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Watched]:
    """One for all tests, each of which leaves it serving: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("inference")
    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patch, reserve() as port:
        patch.setattr(engine_process, "command", scripted)
        patch.setenv("FORETHOUGHT_LOG_DIR", str(folder))
        get_settings.cache_clear()
        engine = ManagedEngine(port_of(port), "engine")
        watched = Watched(engine, tiny_model.write(folder / "tiny"))
        watched.promote(watched.folder)
        thread = threading.Thread(target=inference._work, args=(Inference(engine, stop), stop))
        thread.start()
        try:
            until(lambda: state() == "ready", "it is served", 60)
            yield watched
        finally:
            stop.set()
            engine.stop()
            thread.join(20)
            engine.close()
            get_settings.cache_clear()
            empty_tables(db.get_engine())


def state() -> str | None:
    with transaction() as session:
        return session.scalar(sqlalchemy.select(Serving.state))


@pytest.mark.parametrize("how", ["hang", "die", "exit"])
def test_an_engine_that_no_longer_works_is_started_anew(watched: Watched, how: str) -> None:
    engine = watched.engine
    starts, began = engine.starts, time.monotonic()
    try:
        httpx2.post(f"{engine.url}/misbehave", content=how)
    except httpx2.TransportError:
        assert how == "exit"  # with status 0, in the middle of its answer
    else:
        assert httpx2.get(f"{engine.url}/health").status_code == 200

    until(lambda: state() != "ready", "it is noticed", NOTICE_SECONDS)
    noticed = time.monotonic() - began
    until(lambda: state() == "ready", "another one serves", 60)

    assert noticed < NOTICE_SECONDS
    assert engine.starts == starts + 1
    engine.check(5)


def test_an_engine_says_whose_weights_it_has(watched: Watched) -> None:
    engine = watched.engine
    assert engine.serving is not None
    answer = httpx2.get(f"{engine.url}/weight_info").json()
    assert answer["weight_version"] == engine.serving.sha256


def test_a_busy_engine_is_left_running_and_given_other_weights(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its canary waits in the queue, but tokens come out at the other end."""
    engine, done = watched.engine, itertools.count()
    starts = engine.starts

    def waits(*_: object) -> None:
        raise EngineTimeout("the queue is long")

    monkeypatch.setattr(engine._admin, "canary", waits)
    monkeypatch.setattr(engine._admin, "tokens_done", lambda: next(done))
    engine.check(0.2)
    other = tiny_model.changed(watched.folder, tmp_path / "other")
    watched.promote(other)
    until(lambda: engine.serving is not None and engine.serving.path == other, "it is swapped", 30)
    assert engine.starts == starts


def test_an_engine_that_does_not_start_is_said_so_and_another_model_need_not_wait(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inference, "RETRY_SECONDS", 100.0)
    command = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    monkeypatch.setattr(engine_process, "command", lambda *_: command)
    watched.engine.stop()
    until(lambda: state() == "failed", "it is noticed", NOTICE_SECONDS)
    with transaction() as session:
        assert session.scalar(sqlalchemy.select(Serving.detail)) == "the engine exited with 1"
    assert "no such device" in caplog.text

    monkeypatch.setattr(engine_process, "command", scripted)
    watched.promote(watched.folder)
    until(lambda: state() == "ready", "the other is served", 60)
