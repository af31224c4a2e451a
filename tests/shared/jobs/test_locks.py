"""Transactions that meet on one job wait for each other; none ends in a deadlock."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from shared.db.engine import transaction
from shared.db.tables import JobKind, Status
from shared.jobs import recovery
from shared.jobs.job import NewShard, cancel_job, get_job, submit_job
from shared.jobs.shards import Claim, LeaseLost, claim_shard, finish_shard
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("long_up")
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


class Worker(threading.Thread):
    """Runs one transaction, and keeps the error that ended it."""

    def __init__(self, work: Callable[[Session], object]) -> None:
        super().__init__()
        self.work = work
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with transaction() as session:
                self.work(session)
        except Exception as error:
            self.error = error


@contextmanager
def job_locked(engine: Engine, job_id: uuid.UUID) -> Iterator[Callable[[int], None]]:
    """Hold the row of a job; the function waits until so many transactions wait for a lock."""
    with Session(engine) as holder, engine.connect() as other:
        get_job(holder, job_id, lock=True)

        def until_waiting(count: int) -> None:
            def enough() -> bool:
                other.rollback()
                return bool(other.scalar(text(WAITING)) >= count)

            until(enough, f"{count} transactions waiting for a lock")

        yield until_waiting


def submitted(shards: int = 1) -> uuid.UUID:
    with transaction() as session:
        new = [NewShard({})] * shards
        job, _ = submit_job(session, JobKind.generate, {}, new, job_id=uuid.uuid4())
        return job.id


def claim(session: Session, job_id: uuid.UUID, lease: float = 30) -> Claim | None:
    return claim_shard(session, job_id, worker="w", lease_seconds=lease, max_attempts=1)


def test_a_job_is_cancelled_while_its_first_shard_is_claimed(clean_database: Engine) -> None:
    job_id = submitted()
    with job_locked(clean_database, job_id) as until_waiting:
        cancelling = Worker(lambda session: cancel_job(session, job_id))
        until_waiting(1)
        claiming = Worker(lambda session: claim(session, job_id))
        until_waiting(2)
    for worker in (cancelling, claiming):
        worker.join()
        assert worker.error is None, worker.error
    with transaction() as session:
        assert get_job(session, job_id).status is Status.cancelled


def test_a_late_owner_finishes_while_its_shard_is_swept(clean_database: Engine) -> None:
    job_id = submitted()
    with transaction() as session:
        late = claim(session, job_id, lease=-1)
    assert late is not None
    limits = {"resend_after_seconds": 15, "lease_seconds": 0, "max_attempts": 1}
    with job_locked(clean_database, job_id) as until_waiting:
        finishing = Worker(lambda session: finish_shard(session, late, {}))
        until_waiting(1)
        sweeping = Worker(lambda session: recovery.sweep(session, **limits))
        deadline = time.monotonic() + 1
        while sweeping.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
    finishing.join()
    sweeping.join()
    assert sweeping.error is None, sweeping.error
    assert finishing.error is None or isinstance(finishing.error, LeaseLost), finishing.error
