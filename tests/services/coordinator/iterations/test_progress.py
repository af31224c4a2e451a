"""How fast a stage is said to be, and how long it is said to take."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from services.coordinator.iterations.progress import IterationProgress
from services.coordinator.iterations.progress import progress_of as progress_of_all
from services.coordinator.iterations.state import COMPARISON, job_id
from shared.db.tables import Evaluation, Iteration, Job, JobKind, Shard, Status
from shared.web.job_routes import JobRead
from tests.support import evaluated_runs, factories


def progress_of(session: Session, iteration: Iteration) -> IterationProgress:
    return progress_of_all(session, [iteration])[iteration.id]


BEGUN = timedelta(seconds=10)


@pytest.fixture
def iteration(session: Session) -> Iteration:
    seed, dataset = factories.model(session), factories.dataset(session, 2, 1)
    iteration = evaluated_runs.running(session, dataset, seed)
    iteration.stage = "generate"
    return iteration


def add_job(
    session: Session, iteration: Iteration, step: str, *ended: timedelta, **given: Any
) -> Job:
    """A job that was claimed 10 s ago, of five shards; some ended this long ago."""
    now = datetime.now(UTC)
    values = {"params": {"sampling": {"samples": 8}}, "started_at": now - BEGUN} | given
    kind = JobKind.generate if "generate" in step else JobKind.judge
    job = Job(
        id=job_id(iteration.id, step),
        kind=kind,
        status=Status.running,
        iteration_id=iteration.id,
        step=step,
        **values,
    )
    session.add(job)
    session.flush()
    for index in range(5):
        shard = Shard(job_id=job.id, index=index, payload={}, status=Status.queued)
        if index < len(ended):
            shard.status, shard.result = Status.succeeded, {"tokens": 100}
            shard.finished_at = now - ended[index]
        session.add(shard)
    session.flush()
    return job


HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


@pytest.mark.parametrize("before", [0, 3])
def test_what_was_done_before_a_resume_says_nothing_of_the_speed(
    session: Session, iteration: Iteration, before: int
) -> None:
    add_job(session, iteration, "generate", *[HOUR] * before, SECOND)
    found = progress_of(session, iteration)
    assert (found.done, found.total) == (before + 1, 5)
    assert found.tokens_per_second == pytest.approx(10, rel=0.2)
    assert found.eta_seconds == pytest.approx(10 * (4 - before), rel=0.2)


def test_jobs_weigh_by_the_time_that_their_shards_take(
    session: Session, iteration: Iteration
) -> None:
    """A shard of eight samples takes 8 s here, so one of one sample 1 s; the judge none."""
    add_job(session, iteration, "generate", SECOND, shards_done=1, shard_seconds=8.0)
    add_job(session, iteration, "judge", SECOND, shards_done=1, shard_seconds=0.0)
    seed = iteration.seed_model_id
    waiting = {"params": {"sampling": {"samples": 1}}, "started_at": None}
    generate = add_job(session, iteration, f"evaluate-generate:{seed}", **waiting)
    judge = add_job(session, iteration, f"evaluate-judge:{seed}", **waiting)
    session.add(
        Evaluation(
            run_id=iteration.run_id,
            model_id=seed,
            iteration_id=iteration.id,
            generate_job_id=generate.id,
            judge_job_id=judge.id,
        )
    )
    session.flush()
    found = progress_of(session, iteration)
    assert (found.done, found.total) == (2, 20)
    assert found.eta_seconds == pytest.approx(10 / 8 * (4 * 8 + 5 * 1), rel=0.1)


def test_a_judge_that_goes_on_after_sampling_has_ended_takes_its_time(
    session: Session, iteration: Iteration
) -> None:
    ended = {"shards_done": 5, "shard_seconds": 5.0, "finished_at": datetime.now(UTC) - 5 * SECOND}
    add_job(session, iteration, "generate", *[6 * SECOND] * 5, **ended)
    add_job(session, iteration, "judge", *[SECOND] * 3, shards_done=3, shard_seconds=9.0)
    found = progress_of(session, iteration)
    assert found.eta_seconds == pytest.approx(10 / (5 * 1 + 3 * 3) * (2 * 3), rel=0.1)
    assert found.tokens_per_second == pytest.approx((500 + 300) / 5, rel=0.1)


def test_the_comparison_with_the_parent_is_a_part_of_validation(
    session: Session, iteration: Iteration
) -> None:
    iteration.stage = "validate"
    add_job(session, iteration, COMPARISON, SECOND)
    found = progress_of(session, iteration)
    assert (found.done, found.total) == (1, 5)


def test_a_job_says_what_its_row_has_counted(session: Session, iteration: Iteration) -> None:
    job = add_job(session, iteration, "generate")
    job.shards_done, job.shards_total, job.tokens = 4, 5, 2**40
    progress = JobRead.model_validate(job).progress
    assert (progress.done, progress.total, progress.tokens) == (4, 5, 2**40)
