"""An engine that no longer works is found out and started anew; chat is told so meanwhile."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
import sqlalchemy

from services.cli.ports import port_of, reserve
from shared.db import transaction
from shared.models import Serving
from shared.settings import Settings, get_settings
from tests import factories
from tests.waiting import until
from tests.workers import tiny_model
from workers import engine_process, inference
from workers.engine import Engine
from workers.engine_admin import EngineTimeout
from workers.inference import Inference
from workers.weights import weights_sha256

pytestmark = pytest.mark.slow
NOTICE_SECONDS = 30.0


def scripted(_: Settings, model: Path, host: str, port: int, __: str) -> Sequence[str]:
    options = ["--model", str(model), "--host", host, "--port", str(port), "--tokens", "40"]
    return [sys.executable, "-m", "tests.scripted_engine", *options]


@pytest.fixture
def engine(
    tmp_path: Path, clean_database: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """Serves a promoted model under supervision."""
    monkeypatch.setattr(engine_process, "command", scripted)
    monkeypatch.setenv("FORETHOUGHT_LOG_DIR", str(tmp_path))
    get_settings.cache_clear()
    promote(tiny_model.write(tmp_path / "tiny"))
    stop = threading.Event()
    with reserve() as port:
        engine = Engine(port_of(port), "engine")
        thread = threading.Thread(target=inference._work, args=(Inference(engine, stop), stop))
        thread.start()
        until(lambda: state() == "ready", "it is served", 60)
        yield engine
        stop.set()
        engine.stop()
        thread.join(20)
        engine.close()
    get_settings.cache_clear()


def promote(folder: Path, version: int = 1) -> None:
    with transaction() as session:
        factories.model(
            session,
            version=version,
            path=str(folder),
            weights_sha256=weights_sha256(folder),
            promoted_at=sqlalchemy.func.now(),
        )


def state() -> str | None:
    with transaction() as session:
        return session.scalar(sqlalchemy.select(Serving.state))


@pytest.mark.parametrize("how", ["hang", "die", "exit"])
def test_an_engine_that_no_longer_works_is_started_anew(engine: Engine, how: str) -> None:
    began = time.monotonic()
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
    assert engine.starts == 2
    engine.check(5)


def test_an_engine_says_whose_weights_it_has(engine: Engine) -> None:
    assert engine.serving is not None
    answer = httpx2.get(f"{engine.url}/weight_info").json()
    assert answer["weight_version"] == engine.serving.sha256


def test_a_busy_engine_is_left_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its canary waits in the queue, but tokens come out at the other end."""
    done = iter(range(10))
    monkeypatch.setattr(engine._admin, "tokens_done", lambda: next(done))
    httpx2.post(f"{engine.url}/misbehave", content="hang")
    engine.check(0.2)


def test_a_busy_engine_is_given_other_weights_without_a_restart(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its queue is, what it computes there shows that it works."""

    def waits(*_: object) -> None:
        raise EngineTimeout("the queue is long")

    monkeypatch.setattr(engine._admin, "canary", waits)
    done = itertools.count()
    monkeypatch.setattr(engine._admin, "tokens_done", lambda: next(done))
    other = tiny_model.changed(tmp_path / "tiny", tmp_path / "other")
    promote(other, version=2)
    until(lambda: engine.serving is not None and engine.serving.path == other, "it is swapped", 30)
    assert engine.starts == 1


def test_an_engine_that_does_not_start_is_said_so_and_another_model_need_not_wait(
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inference, "RETRY_SECONDS", 100.0)
    command = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    monkeypatch.setattr(engine_process, "command", lambda *_: command)
    engine.stop()
    until(lambda: state() == "failed", "it is noticed", NOTICE_SECONDS)
    with transaction() as session:
        assert session.scalar(sqlalchemy.select(Serving.detail)) == "the engine exited with 1"
    assert "no such device" in caplog.text

    monkeypatch.setattr(engine_process, "command", scripted)
    promote(tmp_path / "tiny", version=2)
    until(lambda: state() == "ready", "the other is served", 60)
