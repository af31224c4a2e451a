"""What becomes of a training job whose process hangs, or runs out of memory or disk."""

import json
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen as RealPopen
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from shared.db.engine import transaction
from shared.db.tables import Job, JobKind, Model, Shard, Status
from shared.jobs.job import NewShard, submit_job
from shared.jobs.shards import Claim, LeaseLost, claim_shard
from shared.registry.models import training_folder
from shared.schemas.requests import Training
from shared.settings import get_settings
from tests.support import evaluated_runs, factories, tiny_model
from tests.support.stages import run_stage
from workers.job_spec import load
from workers.leases import Leases, StageError
from workers.models.weights import ModelWeights
from workers.resource_errors import DISK_FULL, OUT_OF_MEMORY, exit_status
from workers.train import job as train_job
from workers.train import movement
from workers.train.dpo import micro_batch_size
from workers.train.files import USED_SETTINGS

Popen = RealPopen[bytes]
FAST = Training(batch_size=4, micro_batch_size=2)


def submit(training: Training) -> uuid.UUID:
    job_id = uuid.uuid4()
    with transaction() as session:
        params = {
            "model": str(factories.model(session).id),
            "training": training.model_dump(mode="json"),
        }
        shards = [NewShard({"pairs": tiny_model.some_pairs(4)})]
        submit_job(session, JobKind.train, params, shards, job_id=job_id)
    return job_id


def shard_of(job_id: uuid.UUID) -> Shard:
    with transaction() as session:
        return session.scalars(select(Shard).where(Shard.job_id == job_id)).one()


def test_out_of_memory_is_tried_once_with_less_before_it_counts(
    clean_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def dies(_: Leases, __: Claim, out: Path) -> None:
        settings = json.loads((out / "config.json").read_text())["settings"]
        tried.append(settings["micro_batch_size"])
        used = micro_batch_size(Training.model_validate(settings))
        (out / USED_SETTINGS).write_text(json.dumps({"micro_batch_size": used}))
        raise train_job.OutOfMemory

    monkeypatch.setattr(train_job, "_run", dies)
    # Of 4, a step of 6 pairs uses 3; half of 4 would be tried in vain where 3 do not fit.
    job_id = submit(Training(batch_size=6, micro_batch_size=4))
    run_stage(train_job.main, job_id)
    shard = shard_of(job_id)
    assert (shard.status, shard.attempt) == (Status.queued, 0)
    run_stage(train_job.main, job_id)
    shard = shard_of(job_id)
    assert tried == [4, 1]
    assert shard.status is Status.failed
    assert shard.error is not None
    assert shard.error["code"] == "out_of_memory"
    assert shard.error["param"] == "training.micro_batch_size"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    base = tiny_model.write(tmp_path / "tiny")
    out = tmp_path / "out"
    out.mkdir()
    pairs = tiny_model.write_pairs(tmp_path / "pairs.jsonl", tiny_model.some_pairs(4))
    config = {
        "model_path": str(base),
        "pairs_path": str(pairs),
        "out_dir": str(out),
        "settings": FAST.model_dump(mode="json"),
    }
    (out / "config.json").write_text(json.dumps(config))
    # The kernel's own answer to a write on a full disk, where the result is to be written.
    (out / "result.json.part").symlink_to("/dev/full")
    with pytest.raises(StageError, match=r"the disk of .* is full .* free some space") as e:
        run(out)
    assert e.value.error["code"] == "disk_full"
    assert not e.value.retry
    assert not (out / "result.json").exists()


def run(out: Path) -> None:
    nobody = cast(Leases, SimpleNamespace(report=_nothing, count_anew=_nothing))
    train_job._run(nobody, Claim(1, uuid.uuid4(), 0, {}, 1, uuid.uuid4()), out)


def _nothing(*_: Any) -> None:
    pass


@pytest.fixture
def trains_as(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Popen]]]:
    """Python in place of a training, which hangs where it writes nothing for 2 seconds. The
    processes that it has started."""
    started: list[Popen] = []
    monkeypatch.setenv("FORETHOUGHT_TRAINING_STALL_SECONDS", "2")
    monkeypatch.setattr(movement, "POLL_INTERVAL_S", 0.1)
    get_settings.cache_clear()

    def use(code: str) -> list[Popen]:
        def start(command: list[str], **options: Any) -> Popen:
            started.append(RealPopen([sys.executable, "-c", code, command[-1]], **options))
            return started[-1]

        monkeypatch.setattr(subprocess, "Popen", start)
        return started

    yield use
    get_settings.cache_clear()


def test_a_training_that_hangs_is_ended_to_be_tried_again(
    tmp_path: Path, trains_as: Callable[[str], list[Popen]]
) -> None:
    started = trains_as("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    with pytest.raises(StageError, match=r"wrote nothing .*train\.log") as e:
        run(tmp_path)
    assert (e.value.error["code"], e.value.retry) == ("training_hung", True)
    assert [child.wait() for child in started] == [-signal.SIGKILL]


def test_a_training_that_writes_to_any_file_is_not_ended(
    tmp_path: Path, trains_as: Callable[[str], list[Popen]]
) -> None:
    path = tmp_path / "trainer" / "alive"
    path.parent.mkdir()
    trains_as(
        "import pathlib, time\n"
        f"for _ in range(8): pathlib.Path({str(path)!r}).touch(); time.sleep(0.5)"
    )
    run(tmp_path)


def test_what_ran_out_is_told_by_the_error_or_its_cause() -> None:
    full = RuntimeError("cannot write the file")
    full.__cause__ = OSError(28, "No space left on device")
    assert exit_status(full) == DISK_FULL
    assert exit_status(MemoryError()) == OUT_OF_MEMORY
    allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    assert exit_status(allocator) == OUT_OF_MEMORY
    assert exit_status(ValueError("other")) is None


@pytest.mark.parametrize("weights", [10, 1_000_000])
def test_torch_has_words_of_its_own_for_a_full_disk(weights: int) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.save({"a": torch.zeros(weights)}, "/dev/full")
    assert exit_status(raised.value) == DISK_FULL


@pytest.mark.parametrize("own_pairs", [True, False])
def test_a_checkpoint_knows_what_led_to_it(
    session: Session, tmp_path: Path, own_pairs: bool
) -> None:
    seed = factories.model(session)
    iteration = evaluated_runs.running(session, factories.dataset(session), seed)
    evaluated_runs.sampled(session, iteration, [])
    job_id = uuid.uuid4()
    of = None if own_pairs else iteration.id
    submit_job(session, JobKind.train, {}, [NewShard({})], job_id=job_id, iteration_id=of)
    judged = session.scalars(select(Job).where(Job.step == "judge")).one()
    judged.result = {"versions": {"judge": "verifier/1"}}
    result = {
        "settings": {"epochs": 1},
        "versions": {"trl": "1"},
        "checkpoints": [{"epoch": 1, "path": str(tmp_path), "weights_sha256": factories.WEIGHTS}],
    }
    claim = Claim(1, job_id, 0, {}, 1, uuid.uuid4())
    base = ModelWeights(str(seed.id), tmp_path, factories.WEIGHTS)
    train_job._register(session, claim, base, result)
    lineage = session.scalars(select(Model.lineage).where(Model.job_id == job_id)).one()
    assert lineage["training"] == {"epochs": 1}
    if own_pairs:
        assert lineage["versions"] == {"trl": "1"}
    else:
        assert lineage["versions"] == {"judge": "verifier/1", "trl": "1"}
        assert lineage["iteration_id"] == str(iteration.id)
        assert lineage["dataset"]["name"] == "prompts"
        assert lineage["config"] == iteration.config


@pytest.mark.usefixtures("long_up")
def test_a_training_that_is_woken_late_does_not_take_the_folder_back(
    clean_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(FAST)

    def claim(worker: str, lease: float) -> Claim:
        with transaction() as session:
            taken = claim_shard(session, job_id, worker=worker, lease_seconds=lease, max_attempts=3)
        assert taken is not None
        return taken

    late, successor = claim("late", -1), claim("successor", 30)
    theirs = train_job._workplace(training_folder(job_id), successor)
    (theirs / "inputs.sha256").write_text("as of a training under way")
    with transaction() as session:
        job = load(session, job_id)
    assert job is not None
    assert job.weights is not None
    with pytest.raises(LeaseLost):
        train_job._train(Leases(job_id, "late"), late, job.params, job.weights)
    assert [path.name for path in training_folder(job_id).iterdir()] == [theirs.name]
    shutil.rmtree(training_folder(job_id))
