"""What becomes of sampling when its engine runs out of memory."""

import sys
import uuid
from pathlib import Path

import pytest
from sqlalchemy import Engine as Database
from sqlalchemy import select

from shared.db.engine import transaction
from shared.db.tables import JobKind, Shard, Status
from shared.jobs.job import NewShard, submit_job
from shared.settings import Settings, get_settings
from shared.thinking.formats import GENERIC
from shared.thinking.sampling import Sampling
from tests.support import factories, tiny_model
from tests.support.engine_scripts import Play
from tests.support.scripted_engine import ScriptedEngine, running
from workers.engine import process as engine_process
from workers.engine.admin import EngineError, EngineStartError
from workers.engine.engine import ManagedEngine
from workers.models.folder import write_probe
from workers.models.weights import ModelWeights, weights_sha256
from workers.runtime import Runtime

DIES = "print('torch.OutOfMemoryError: CUDA out of memory'); exit(1)"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tiny_model.write(tmp_path / "tiny")
    write_probe(folder)
    return folder


def test_the_next_server_decodes_half_as_many_at_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def command(settings: Settings, *_: object) -> list[str]:
        tried.append(settings.max_num_seqs)
        return [sys.executable, "-c", DIES]

    monkeypatch.setattr(engine_process, "command", command)
    engine = ManagedEngine(1, "dies-of-memory")
    for _ in range(3):
        with pytest.raises(EngineStartError, match="out of memory"):
            engine.ensure(ModelWeights("tiny", tiny, "0" * 64))
    engine.close()
    most = get_settings().max_num_seqs
    assert tried == [most, most // 2, most // 4]


def test_an_engine_that_was_killed_while_it_started_may_start_the_next_time(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(engine_process, "command", lambda *_: killed)
    engine = ManagedEngine(1, "was-killed")
    with pytest.raises(EngineError, match="exited with -9") as e:
        engine.ensure(ModelWeights("tiny", tiny, "0" * 64))
    assert not isinstance(e.value, EngineStartError)
    engine.close()


def refuses_the_prompt(prompt: str, _: int) -> Play:
    return Play("x", fails="Say something." in prompt)


def submit(model: Path) -> uuid.UUID:
    job_id = uuid.uuid4()
    with transaction() as session:
        row = factories.model(session, path=str(model), weights_sha256=weights_sha256(model))
        params = {
            "model": str(row.id),
            "thought_format": GENERIC.model_dump(),
            "sampling": Sampling(max_thought_tokens=20, max_response_tokens=20).model_dump(),
        }
        payload = {"start": 0, "prompts": [{"text": "Say something.", "checks": []}]}
        submit_job(session, JobKind.generate, params, [NewShard(payload)], job_id=job_id)
    return job_id


def shard_of(job_id: uuid.UUID) -> Shard:
    with transaction() as session:
        return session.scalars(select(Shard).where(Shard.job_id == job_id)).one()


def test_a_shard_pays_for_it_with_an_attempt_only_the_second_time(
    tiny: Path, clean_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(ScriptedEngine(tiny, refuses_the_prompt)) as url:
        monkeypatch.setenv("FORETHOUGHT_WORKER_ENGINE_URL", url)
        get_settings.cache_clear()
        monkeypatch.setattr(ManagedEngine, "ran_out_of_memory", lambda _: True)
        runtime = Runtime()
        job_id = submit(tiny)
        runtime.run(job_id)
        shard = shard_of(job_id)
        assert (shard.status, shard.attempt) == (Status.queued, 0)
        runtime.run(job_id)
        runtime.stop()
    get_settings.cache_clear()
    shard = shard_of(job_id)
    assert (shard.status, shard.attempt) == (Status.queued, 1)
    assert shard.error is not None
    assert shard.error["code"] == "engine_failed"
