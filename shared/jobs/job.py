"""The life of a whole job: submitted, read, ended, resumed.

Jobs are rows and messages are hints (`docs/decisions/0001-one-message-a-job.md`).

Order of locks: every transaction locks a job's row before the rows of its shards. Several jobs at
once are locked with SKIP LOCKED. So no two transactions wait for each other.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Session

from shared.db.engine import notify
from shared.db.tables import UNFINISHED, Job, JobKind, Json, Shard, Status
from shared.errors import Conflict, NotFound
from shared.registry.models import resolve

T = TypeVar("T")


@dataclass(frozen=True)
class NewShard:
    payload: Json
    after_shard_id: int | None = None


def slices(
    items: Sequence[T], size: int, joined: Callable[[T, T], bool] = lambda _, __: False
) -> Iterator[tuple[int, Sequence[T]]]:
    """Cut bulk work into shards: yields (offset, slice) with `size` items each, fewer in the last.

    Two neighbours that are `joined` stay in one slice, which may then be longer than `size`.
    """
    start = 0
    while start < len(items):
        end = min(start + size, len(items))
        while end < len(items) and joined(items[end - 1], items[end]):
            end += 1
        yield start, items[start:end]
        start = end


def submit_job(
    session: Session,
    kind: JobKind,
    params: Mapping[str, Any],
    shards: Iterable[NewShard],
    *,
    job_id: uuid.UUID,
    iteration_id: uuid.UUID | None = None,
    step: str | None = None,
) -> tuple[Job, bool]:
    """Insert a job with its shards; returns the job and whether it is new.

    A repeated submission finds the first one's job. Another body under the same id is a `Conflict`.
    """
    values = {
        "id": job_id,
        "kind": kind,
        "params": dict(params),
        "iteration_id": iteration_id,
        "step": step,
        "status": Status.queued,
    }
    inserted = session.execute(
        pg_insert(Job).values(values).on_conflict_do_nothing().returning(Job.id)
    ).scalar()
    job = get_job(session, job_id)
    if inserted is None:
        if job.kind != kind or job.params != dict(params):
            raise Conflict(f"job {job_id} exists with another request", param="id")
        return job, False
    rows = [
        {
            "job_id": job_id,
            "index": i,
            "payload": s.payload,
            "after_shard_id": s.after_shard_id,
            "status": Status.queued,
        }
        for i, s in enumerate(shards)
    ]
    session.execute(insert(Shard), rows)
    job.shards_total = len(rows)
    session.flush()
    return job, True


def get_job(session: Session, job_id: uuid.UUID, *, lock: bool = False) -> Job:
    """The job's row as it is now. `lock` keeps it until the transaction ends."""
    query = select(Job).where(Job.id == job_id).execution_options(populate_existing=True)
    # Not FOR UPDATE: uncommitted rows of other shards that refer to the job would block it.
    job = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if job is None:
        raise NotFound(f"no job {job_id}", param="id")
    return job


def fail_job(session: Session, job_id: uuid.UUID, error: Json) -> None:
    """End a job that cannot run at all, such as one whose engine does not start."""
    job = get_job(session, job_id, lock=True)
    if not job.status.terminal:
        end_job(session, job, Status.failed, error)
        notify(session, f"job {job_id}")


def cancel_job(session: Session, job_id: uuid.UUID) -> Job:
    """End a job that has not ended. Its workers lose their leases and stop."""
    job = get_job(session, job_id, lock=True)
    if not job.status.terminal:
        end_job(session, job, Status.cancelled)
        notify(session, f"cancel {job_id}")
    return job


def end_job(session: Session, job: Job, status: Status, error: Json | None = None) -> None:
    """Record the end of a job, whose row the caller has locked, and of its unfinished shards."""
    job.status, job.error = status, error
    # The database's clock, for the resume of an iteration is compared with it.
    job.finished_at = cast(datetime, func.clock_timestamp())
    if status is not Status.succeeded:
        session.execute(
            update(Shard)
            .where(Shard.job_id == job.id, Shard.status.in_(UNFINISHED))
            .values(status=Status.cancelled, token=None, finished_at=func.now())
        )
    session.flush()


def resume_job(session: Session, job_id: uuid.UUID) -> Job:
    """Reopen a job that failed or was cancelled; shards that succeeded stay as they are."""
    job = get_job(session, job_id, lock=True)
    if job.status in (Status.failed, Status.cancelled):
        if (model := job.params.get("model")) is not None:
            resolve(session, model, param="model")  # its weights may have been pruned since
        job.status, job.error, job.finished_at, job.sent_at = Status.queued, None, None, None
        session.execute(
            update(Shard)
            .where(Shard.job_id == job_id, Shard.status != Status.succeeded)
            .values(status=Status.queued, attempt=0, not_before=None, finished_at=None, error=None)
        )
        notify(session, f"job {job_id}")
        session.flush()
    return job
