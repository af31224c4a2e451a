"""How fast a stage is said to be, and how long it is said to take."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from services.coordinator.progress import progress_of
from services.coordinator.state import job_id
from shared.job_routes import read_job
from shared.models import Iteration, Job, JobKind, Shard, Status
from tests import evaluated_runs, factories


def sampling(session: Session, *ended: timedelta) -> Job:
    """A generate job that was claimed 10 s ago, of five shards; some ended this long ago."""
    seed, dataset = factories.model(session), factories.dataset(session, 2, 1)
    iteration = evaluated_runs.running(session, dataset, seed)
    iteration.stage = "generate"
    now = datetime.now(UTC)
    job = Job(
        id=job_id(iteration.id, "generate"),
        kind=JobKind.generate,
        status=Status.running,
        params={},
        iteration_id=iteration.id,
        started_at=now - timedelta(seconds=10),
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


@pytest.mark.parametrize("before", [0, 3])
def test_what_was_done_before_a_resume_says_nothing_of_the_speed(
    session: Session, before: int
) -> None:
    hour, second = timedelta(hours=1), timedelta(seconds=1)
    job = sampling(session, *[hour] * before, second)
    iteration = session.get_one(Iteration, job.iteration_id)
    found = progress_of(session, iteration)
    assert (found.done, found.total) == (before + 1, 5)
    assert found.tokens_per_second == pytest.approx(10, rel=0.2)
    assert found.eta_seconds == pytest.approx(10 * (4 - before), rel=0.2)


def test_a_job_says_what_its_row_has_counted(session: Session) -> None:
    job = sampling(session)
    job.shards_done, job.tokens = 4, 2**40
    told = read_job(session, job).progress
    assert (told.done, told.total, told.tokens) == (4, 5, 2**40)
