"""What the stage deletes of a pruned iteration, and what it leaves for others."""

import shutil
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, column, func, select, table, update

from services.coordinator.iterations.state import job_id
from shared.db.engine import transaction
from shared.db.tables import (
    Iteration,
    Job,
    JobKind,
    Judgment,
    Model,
    Pair,
    SampledPrompt,
    Shard,
    Status,
)
from shared.errors import Conflict
from shared.jobs.job import NewShard, submit_job
from shared.registry.models import resolve, training_folder
from shared.settings import get_settings
from tests.support import factories
from tests.support.past_runs import checkpoint, files, past_run, samples
from tests.support.stages import run_stage
from tests.support.waiting import until
from workers.models import prune

OK, FAILED = Status.succeeded, Status.failed
PID = column("pid", Integer)
ACTIVITY = table("pg_stat_activity", PID)
LEFT = {"attempt-1/epoch-2/model.safetensors", "attempt-1/metrics.jsonl"}


@pytest.fixture(autouse=True)
def seed(clean_database: Engine) -> Iterator[None]:
    with transaction() as session:
        factories.model(session)
    yield
    shutil.rmtree(training_folder(uuid.uuid4()).parent, ignore_errors=True)


def ended(*outcomes: Status, **given: Any) -> list[uuid.UUID]:
    with transaction() as session:
        return past_run(session, *outcomes, **given)


def pruned(iteration_id: uuid.UUID) -> Job:
    """Mark it and run its job, as often as one likes; returns the job."""
    id_ = job_id(iteration_id, "prune")
    with transaction() as session:
        session.get_one(Iteration, iteration_id).pruned_at = datetime.now(UTC)
        params = {"iteration_id": str(iteration_id)}
        submit_job(session, JobKind.prune, params, [NewShard({})], job_id=id_)
    run_stage(prune.main, id_)
    with transaction() as session:
        return session.get_one(Job, id_)


def path_of(model_id: uuid.UUID) -> str | None:
    with transaction() as session:
        return session.get_one(Model, model_id).path


def test_of_an_iteration_that_made_a_model_its_pairs_and_the_model_stay() -> None:
    [made] = ended(OK)
    job = pruned(made)
    assert job.status is OK
    assert job.result == {"checkpoints": 1, "completions": 4, "bytes": 2002}
    with transaction() as session:
        assert samples(session, made) == [0, 3]
        assert samples(session, made, "evaluate-generate:x") == []
        assert session.scalar(select(func.count()).select_from(Judgment)) == 2
        assert session.scalar(select(func.count()).select_from(Pair)) == 1
        kept = session.scalars(select(SampledPrompt.job_id)).all()
        assert kept == [job_id(made, "generate")], "the prompt stays that a pair was sampled behind"
        assert session.get_one(Iteration, made).report == {"completions": 4}
    assert path_of(checkpoint(made, 1)) is None
    assert files(made) == LEFT


def test_of_one_that_made_none_nothing_stays_but_rows_without_text_or_weights() -> None:
    [failed] = ended(FAILED)
    pruned(failed)
    with transaction() as session:
        assert samples(session, failed) == []
        assert session.scalar(select(func.count()).select_from(Pair)) == 0
        assert session.scalar(select(func.count()).select_from(SampledPrompt)) == 0
        assert session.get_one(Model, checkpoint(failed, 2)).weights_sha256
    assert not training_folder(job_id(failed, "train")).exists()


def test_others_lose_nothing() -> None:
    [failed], [other] = ended(FAILED), ended(FAILED)
    before = files(other)
    pruned(failed)
    assert files(other) == before
    with transaction() as session:
        assert samples(session, other) == [0, 1, 2, 3]
    assert path_of(checkpoint(other, 1)) is not None


@pytest.mark.parametrize("generations", [1, 3])
def test_ancestors_of_a_model_stay_over_generations(generations: int) -> None:
    chain = []
    base: uuid.UUID | None = None
    for _ in range(generations):
        with transaction() as session:
            seed = session.get_one(Model, base) if base else None
            chain += past_run(session, FAILED, seed=seed)
        base = checkpoint(chain[-1], 1)
    with transaction() as session:
        session.get_one(Model, base).promoted_at = datetime.now(UTC)
    for id_ in chain:
        pruned(id_)
        assert path_of(checkpoint(id_, 1)) is not None
        assert path_of(checkpoint(id_, 2)) is None
        with transaction() as session:
            assert samples(session, id_) == [0, 3], "its pairs are lineage"


def test_what_an_unfinished_job_begins_with_stays() -> None:
    [failed] = ended(FAILED)
    with transaction() as session:
        params = {"model": str(checkpoint(failed, 1))}
        submit_job(session, JobKind.train, params, [NewShard({})], job_id=uuid.uuid4())
    pruned(failed)
    assert path_of(checkpoint(failed, 1)) is not None
    assert path_of(checkpoint(failed, 2)) is None


def test_what_an_iteration_may_be_resumed_from_stays() -> None:
    [failed] = ended(FAILED)
    with transaction() as session:
        past_run(session, FAILED, seed=session.get_one(Model, checkpoint(failed, 2)))
    pruned(failed)
    assert path_of(checkpoint(failed, 2)) is not None


@pytest.mark.usefixtures("long_up")
def test_a_kill_between_rows_and_folders_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    [made] = ended(OK)

    def killed(folder: Path, kept: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune, "remove_leftovers", killed)
        with pytest.raises(KeyboardInterrupt):
            pruned(made)
    assert "attempt-1/epoch-1/model.safetensors" in files(made)
    with transaction() as session:
        lapsed = update(Shard).values(lease_until=func.now())
        session.execute(lapsed.where(Shard.status == Status.running))
    job = pruned(made)
    assert job.result == {"checkpoints": 0, "completions": 0, "bytes": 2002}
    assert files(made) == LEFT


def test_a_repeat_does_nothing() -> None:
    [made] = ended(OK)
    first = pruned(made)
    assert pruned(made).result == first.result
    assert prune.prune(made, [job_id(made, "train")]) == {
        "checkpoints": 0,
        "completions": 0,
        "bytes": 0,
    }
    assert files(made) == LEFT
    with transaction() as session:
        assert samples(session, made) == [0, 3]


def test_a_store_mounted_elsewhere_loses_no_model() -> None:
    [made] = ended(OK)
    with transaction() as session:
        model = session.get_one(Model, checkpoint(made, 2))
        assert model.path is not None
        store = get_settings().model_store.resolve()
        model.path = "/mnt/other" + model.path.removeprefix(str(store))
    pruned(made)
    assert files(made) == LEFT


def test_a_folder_that_cannot_be_removed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    [failed] = ended(FAILED)

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "/models")

    monkeypatch.setattr(prune, "remove_leftovers", refused)
    pruned(failed)
    with transaction() as session:
        error = session.scalar(select(Shard.error).where(Shard.error.is_not(None)))
    assert error is not None
    assert (error["code"], "Permission denied" in error["message"]) == ("prune_failed", True)


def waits(thread: threading.Thread) -> None:
    """Until Postgres says that somebody waits for a lock."""

    def waiting() -> bool:
        with transaction() as session:
            query = func.count().filter(func.cardinality(func.pg_blocking_pids(PID)) > 0)
            return bool(session.scalar(select(query).select_from(ACTIVITY)))

    until(waiting, "it waits for the row's lock")
    assert thread.is_alive()


def test_pruning_sees_the_job_that_was_first() -> None:
    [failed] = ended(FAILED)
    model_id = checkpoint(failed, 1)
    thread = threading.Thread(target=pruned, args=(failed,))
    with transaction() as session:
        resolve(session, str(model_id), param="model")
        thread.start()
        waits(thread)
        params = {"model": str(model_id)}
        submit_job(session, JobKind.train, params, [NewShard({})], job_id=uuid.uuid4())
    thread.join()
    assert path_of(model_id) is not None


def test_who_comes_after_pruning_is_told() -> None:
    [failed] = ended(FAILED)
    model_id = checkpoint(failed, 1)
    refused: list[Conflict] = []

    def begin() -> None:
        with pytest.raises(Conflict) as error, transaction() as session:
            resolve(session, str(model_id), param="model")
        refused.append(error.value)

    thread = threading.Thread(target=begin)
    with transaction() as session:
        session.get_one(Iteration, failed).pruned_at = datetime.now(UTC)
        session.flush()
        assert prune.forget_checkpoints(session, [job_id(failed, "train")]) == 2
        thread.start()
        waits(thread)
    thread.join()
    assert [error.code for error in refused] == ["model_pruned"]
