"""The life of a shard: claimed, renewed, then finished, failed or handed back.

A worker owns a shard while its lease lasts. Every write it makes is conditional on the token it got
when it claimed, so a worker that was suspended and woken cannot commit over its successor.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from shared.db.engine import notify
from shared.db.tables import UNFINISHED, Job, Json, Shard, Status
from shared.jobs.job import end_job, get_job

RETRY_DELAY = timedelta(seconds=2)
"""Wait before the second attempt; doubled for each one after it."""


class LeaseLost(Exception):
    """The shard belongs to another worker now, or its job has ended; drop the work."""


@dataclass(frozen=True)
class Claim:
    """A leased shard. `token` fences every commit made for it."""

    shard_id: int
    job_id: uuid.UUID
    index: int
    payload: Json
    attempt: int
    token: uuid.UUID


def past_grace_period(lease_seconds: float) -> ColumnElement[bool]:
    """Postgres has run for at least a lease's time, so that every living worker could renew."""
    return func.pg_postmaster_start_time() < _from_now(-lease_seconds)


def claimable(lease_seconds: float) -> ColumnElement[bool]:
    """Shards that a worker may take now: due, or leased to one that died; upstream done."""
    before = aliased(Shard)
    upstream_done = (
        select(before.id)
        .where(before.id == Shard.after_shard_id, before.status == Status.succeeded)
        .correlate(Shard)
        .exists()
    )
    now = func.clock_timestamp()
    return and_(
        Shard.status.in_(UNFINISHED),  # names the condition of the index
        or_(
            and_(
                Shard.status == Status.queued,
                or_(Shard.not_before.is_(None), Shard.not_before <= now),
            ),
            and_(
                Shard.status == Status.running,
                Shard.lease_until < now,
                past_grace_period(lease_seconds),
            ),
        ),
        or_(Shard.after_shard_id.is_(None), upstream_done),
    )


def has_work(
    session: Session, job_id: uuid.UUID, *, lease_seconds: float, max_attempts: int
) -> bool:
    """Tell if `claim_shard` would find a shard."""
    return session.scalar(_job_with_work(job_id, lease_seconds, max_attempts)) is not None


def _job_with_work(job_id: uuid.UUID, lease_seconds: float, max_attempts: int) -> Select[Job]:
    shard = select(Shard.id).where(Shard.attempt < max_attempts, claimable(lease_seconds))
    return select(Job).where(
        Job.id == job_id,
        Job.status.in_(UNFINISHED),
        shard.where(Shard.job_id == Job.id).correlate(Job).exists(),
    )


def claim_shard(
    session: Session,
    job_id: uuid.UUID,
    *,
    worker: str,
    lease_seconds: float,
    max_attempts: int,
    held: Collection[int] = (),
) -> Claim | None:
    """Lease the next shard of a job, or return None if there is none to take now.

    `held` are the shards that the caller works on, which it does not take a second time if their
    leases have run out. As everywhere, the job's row is locked before its shards' (see `job.py`).
    """
    job = session.scalar(
        _job_with_work(job_id, lease_seconds, max_attempts)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if job is None:
        return None
    shard = session.scalar(
        select(Shard)
        .where(
            Shard.job_id == job_id,
            Shard.attempt < max_attempts,
            claimable(lease_seconds),
            Shard.id.not_in(held),
        )
        .order_by(Shard.index)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True, of=Shard)
    )
    if shard is None:
        return None
    now = datetime.now(UTC)
    shard.leases_lost += shard.status is Status.running
    shard.status = Status.running
    shard.attempt += 1
    shard.token = uuid.uuid4()
    shard.progress = None
    shard.worker = worker
    shard.started_at = now
    shard.lease_until = cast(datetime, _from_now(lease_seconds))
    if job.status is Status.queued:
        job.status, job.started_at = Status.running, now
    notify(session, f"job {job_id}")
    session.flush()
    return Claim(shard.id, job_id, shard.index, shard.payload, shard.attempt, shard.token)


def _from_now(seconds: float) -> ColumnElement[datetime]:
    # The database's clock, not the worker's: a machine whose clock is off keeps fair leases.
    return func.clock_timestamp() + timedelta(seconds=seconds)


def renew_lease(
    session: Session, claim: Claim, *, lease_seconds: float, progress: Json | None = None
) -> None:
    """Extend the lease and record progress; `LeaseLost` when the shard is no longer ours."""
    values: dict[str, Any] = {"lease_until": _from_now(lease_seconds)}
    if progress is not None:
        values["progress"] = progress
    _write(session, claim, values)


def reset_attempts(session: Session, claim: Claim) -> None:
    """Count attempts from here, because the work since the claim is saved."""
    _write(session, claim, {"attempt": 1})


def holds_expired(session: Session, job_id: uuid.UUID, worker: str) -> bool:
    """Tell if a worker still owns a shard of the job although its lease has run out."""
    query = select(Shard.id).where(
        Shard.job_id == job_id,
        Shard.worker == worker,
        Shard.status == Status.running,
        Shard.lease_until < func.clock_timestamp(),
    )
    return session.scalar(query.limit(1)) is not None


def finish_shard(session: Session, claim: Claim, result: Json) -> None:
    """Commit a shard, and end the job if it was the last one.

    The rows that the shard made belong into the same transaction: they exist exactly when it has
    succeeded.
    """
    job = get_job(session, claim.job_id, lock=True)
    values = {"status": Status.succeeded, "result": result, "finished_at": func.now()}
    seconds = _write(session, claim, {**values, "error": None})
    job.shards_done += 1
    job.shard_seconds += max(0.0, seconds)  # a worker's clock may be ahead of the database's
    job.tokens += int(result.get("tokens") or result.get("completion_tokens") or 0)
    if job.shards_done == job.shards_total:
        results = session.scalars(
            select(Shard.result).where(Shard.job_id == job.id).order_by(Shard.index)
        )
        job.result = merge_results(r for r in results if r)
        end_job(session, job, Status.succeeded)
    notify(session, f"job {job.id}")


def merge_results(results: Iterable[Json]) -> Json:
    """Make a job's result from its shards': sums of numbers, and the last of other values."""
    merged: Json = {}
    for result in results:
        for key, value in result.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            merged[key] = merged.get(key, 0) + value if is_number else value
    return merged


def fail_shard(
    session: Session, claim: Claim, error: Json, *, max_attempts: int, retry: bool = True
) -> None:
    """Give a shard back for another attempt, or end its job once the attempts are used up."""
    job = get_job(session, claim.job_id, lock=True)
    attempt = session.scalar(select(Shard.attempt).where(Shard.id == claim.shard_id)) or 1
    if retry and attempt < max_attempts:
        delay = RETRY_DELAY.total_seconds() * 2 ** (attempt - 1)
        values = {"status": Status.queued, "not_before": _from_now(delay)}
        _write(session, claim, {**values, "error": error, "lease_until": None})
        job.sent_at = None  # the sweeper sends again as soon as the delay is over
    else:
        _write(session, claim, {"status": Status.failed, "error": error, "finished_at": func.now()})
        end_job(session, job, Status.failed, error)
    notify(session, f"job {job.id}")


def hand_back_shard(session: Session, claim: Claim, payload: Json) -> None:
    """Queue a shard again with another payload; this attempt does not count."""
    job = get_job(session, claim.job_id, lock=True)
    values = {"status": Status.queued, "attempt": Shard.attempt - 1, "lease_until": None}
    _write(session, claim, {**values, "payload": payload})
    job.sent_at = None
    notify(session, f"job {job.id}")


def _write(session: Session, claim: Claim, values: Mapping[str, Any]) -> float:
    """Update a shard if it is still the claim's; every write of a worker goes through here.

    Returns the seconds since the claim.
    """
    seconds = session.scalar(
        update(Shard)
        .where(
            Shard.id == claim.shard_id, Shard.token == claim.token, Shard.status == Status.running
        )
        .values(**values)
        .returning(func.extract("epoch", func.now() - Shard.started_at))
    )
    if seconds is None:
        raise LeaseLost(f"shard {claim.index} of job {claim.job_id}")
    return float(seconds)
