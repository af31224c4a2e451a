"""Inference in a container: where its engine listens, and where the coordinator finds it."""

import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy

from services.chat.served_model import read_serving
from shared.db.engine import transaction
from shared.db.tables import Serving
from shared.settings import Settings, get_settings
from tests.support import factories, tiny_model
from tests.support.scripted_engine import ScriptedEngine, running
from workers.engine import process as engine_process
from workers.engine.admin import EngineStartError
from workers.engine.engine import ManagedEngine
from workers.engine.inference import Inference
from workers.models.weights import ModelWeights, weights_sha256


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://127.0.0.1:8012"),
        ("0.0.0.0", "http://127.0.0.1:8012"),
        ("127.0.0.2", "http://127.0.0.2:8012"),
    ],
)
def test_its_engine_listens_on_loopback_unless_told_otherwise(
    host: str | None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def command(settings: Settings, model: Path, host: str, port: int) -> list[str]:
        commands.append(real(settings, model, host, port))
        return [sys.executable, "-c", "exit(1)"]

    real = engine_process.command
    monkeypatch.setattr(engine_process, "command", command)
    if host is not None:
        monkeypatch.setenv("FORETHOUGHT_INFERENCE_ENGINE_HOST", host)
    get_settings.cache_clear()
    inference, worker = ManagedEngine.for_inference(), ManagedEngine.for_worker()
    model = tiny_model.write(tmp_path / "tiny")
    for engine in (inference, worker):
        with pytest.raises(EngineStartError):
            engine.ensure(ModelWeights("tiny", model, "0" * 64))
        engine.close()
    get_settings.cache_clear()

    assert inference.url == url
    listens = [command[command.index("--host") + 1] for command in commands]
    assert listens == [host or "127.0.0.1", "127.0.0.1"]


def test_the_coordinator_is_told_the_advertised_address(
    tmp_path: Path, clean_database: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETHOUGHT_INFERENCE_ADVERTISED_URL", "http://inference:8012")
    get_settings.cache_clear()
    tiny = tiny_model.write(tmp_path / "tiny")
    with transaction() as session:
        factories.model(
            session,
            path=str(tiny),
            weights_sha256=weights_sha256(tiny),
            promoted_at=sqlalchemy.func.now(),
        )
    with running(ScriptedEngine(tiny, lambda *_: "x")) as url:
        engine = ManagedEngine(0, "engine", url)
        inference = Inference(engine, threading.Event())
        inference.look()
        ready = [engine.url for engine in read_serving().engines]
        inference.leave()
        engine.close()
    get_settings.cache_clear()

    assert ready == ["http://inference:8012"]
    with transaction() as session:
        assert session.scalars(sqlalchemy.select(Serving)).all() == []
