"""A stage whose engine hangs is ended and done again."""

import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
import sqlalchemy
from sqlalchemy import select

from services.cli.machine.ports import port_of, reserve
from shared.db.engine import transaction
from shared.db.tables import JobKind, Shard, Status
from shared.jobs.job import NewShard, submit_job
from shared.settings import Settings, get_settings
from shared.thinking.formats import GENERIC
from shared.thinking.sampling import Sampling
from tests.support import factories, tiny_model
from tests.support.waiting import until
from workers.engine import process as engine_process
from workers.engine import watch
from workers.engine.engine import ManagedEngine
from workers.models.weights import weights_sha256
from workers.runtime import Runtime


def slow(_: Settings, model: Path, host: str, port: int) -> Sequence[str]:
    """A server that takes two seconds for a thought of 20 tokens, and counts them beforehand."""
    options = ["--model", str(model), "--host", host, "--port", str(port)]
    return [
        sys.executable,
        "-m",
        "tests.support.scripted_engine",
        *options,
        "--token-seconds",
        "0.1",
    ]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.1)
    monkeypatch.setattr(watch, "CANARY_SECONDS", 2.0)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Runtime]:
    """With an engine of its own."""
    with reserve() as port:
        monkeypatch.setattr(engine_process, "command", slow)
        monkeypatch.setattr(ManagedEngine.check, "__defaults__", (2.0,))
        monkeypatch.setenv("FORETHOUGHT_LOG_DIR", str(tmp_path))
        monkeypatch.setenv("FORETHOUGHT_WORKER_ENGINE_PORT", str(port_of(port)))
        get_settings.cache_clear()
        runtime = Runtime()
        yield runtime
        runtime.stop()
    get_settings.cache_clear()


def submit(model: Path) -> uuid.UUID:
    sampling = Sampling(samples=1, max_thought_tokens=20, max_response_tokens=20, boundary="forced")
    with transaction() as session:
        row = factories.model(session, path=str(model), weights_sha256=weights_sha256(model))
        params = {
            "model": str(row.id),
            "thought_format": GENERIC.model_dump(),
            "sampling": sampling.model_dump(),
        }
        shard = NewShard({"start": 0, "prompts": [{"text": "Say something.", "checks": []}]})
        job_id = uuid.uuid4()
        submit_job(session, JobKind.generate, params, [shard], job_id=job_id)
    return job_id


def shard_of(job_id: uuid.UUID) -> Shard:
    with transaction() as session:
        return session.scalars(select(Shard).where(Shard.job_id == job_id)).one()


@pytest.mark.slow
def test_a_shard_whose_engine_hangs_is_done_by_another_engine(
    tmp_path: Path, clean_database: sqlalchemy.Engine, runtime: Runtime
) -> None:
    job_id = submit(tiny_model.write(tmp_path / "tiny"))
    stage = threading.Thread(target=runtime.run, args=(job_id,))
    stage.start()
    until(lambda: shard_of(job_id).status is Status.running, "the shard is claimed", 60)
    httpx2.post(f"{runtime._engine.url}/misbehave", content="hang")
    stage.join(60)
    assert not stage.is_alive()
    assert not runtime._engine.alive(), "the next stage would find it hung once more"
    shard = shard_of(job_id)
    assert (shard.status, shard.attempt) == (Status.queued, 1)
    assert shard.error is not None
    assert shard.error["code"] == "engine_failed"

    def done() -> bool:
        runtime.run(job_id)  # at once where its delay is not over
        return shard_of(job_id).status is Status.succeeded

    until(done, "it is done", 60)
    assert runtime._engine.starts == 2
