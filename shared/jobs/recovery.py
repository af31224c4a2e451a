"""Bringing lost work back: sweep what died, release what a dead process held, resume by hand."""

import uuid
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import Select, Uuid, func, or_, select
from sqlalchemy import cast as as_type
from sqlalchemy.orm import Session, aliased

from shared.db.tables import UNFINISHED, Job, JobKind, Json, Shard, Status
from shared.jobs.job import fail_job, get_job
from shared.jobs.shards import Claim, claimable, fail_shard, past_grace_period


def release_shards(
    session: Session,
    job_id: uuid.UUID,
    worker: str,
    error: Json,
    *,
    max_attempts: int,
    counts: bool = True,
) -> int:
    """Give back what a worker that has exited still held; returns how many shards that were.

    Where the attempt does not count, as at an orderly stop, another worker may begin at once.
    """
    job = get_job(session, job_id, lock=True)
    held = session.scalars(
        select(Shard)
        .where(Shard.job_id == job_id, Shard.worker == worker, Shard.status == Status.running)
        .order_by(Shard.index)
        .with_for_update()  # another may be taking over what has expired
    ).all()
    if held and not counts:
        job.sent_at = None
    for shard in held:
        if not counts:
            shard.status, shard.attempt, shard.token = Status.queued, shard.attempt - 1, None
            continue
        if shard.token is None:
            break  # the one before it has ended the job, and all its shards
        claim = Claim(shard.id, job_id, shard.index, shard.payload, shard.attempt, shard.token)
        fail_shard(session, claim, error, max_attempts=max_attempts)
    return len(held)


def sweep(
    session: Session, *, resend_after_seconds: float, lease_seconds: float, max_attempts: int
) -> list[Job]:
    """Quarantine shards that died on their last attempt; fail judge jobs that wait for responses
    which will not come; return the jobs to send again.

    A job is due when it has a shard to take and no message was sent for it lately: whatever
    Redis lost, delivered twice or delivers late changes nothing.
    """
    expired = (
        select(Shard)
        .where(
            past_grace_period(lease_seconds),
            Shard.status == Status.running,
            Shard.lease_until < func.clock_timestamp(),
            Shard.attempt >= max_attempts,
        )
        .order_by(Shard.job_id, Shard.index)
        .with_for_update(skip_locked=True)
    )
    for shard in session.scalars(expired).all():
        shard.leases_lost += 1
        if shard.token is None:
            continue  # the one before it has ended their job, and all its shards
        error = shard.error or {
            "code": "worker_lost",
            "message": f"shard {shard.index} lost its worker {shard.worker} "
            f"{shard.attempt} times without an error of its own",
        }
        shard.status, shard.error, shard.token = Status.failed, error, None
        fail_job(session, shard.job_id, error)
    for job_id, upstream_id in session.execute(_waiting_in_vain()).all():
        message = f"generate job {upstream_id} ended without them all; resume it, then this one"
        fail_job(session, job_id, {"code": "no_responses", "message": message})
    stale = func.clock_timestamp() - timedelta(seconds=resend_after_seconds)
    due = (
        select(Job)
        .where(
            Job.status.in_(UNFINISHED),
            or_(Job.sent_at.is_(None), Job.sent_at < stale),
            select(Shard.id)
            .where(Shard.job_id == Job.id, claimable(lease_seconds), Shard.attempt < max_attempts)
            .exists(),
        )
        .with_for_update(skip_locked=True, of=Job)
    )
    jobs = list(session.scalars(due))
    for job in jobs:
        job.sent_at = cast(datetime, func.clock_timestamp())
    return jobs


def _waiting_in_vain() -> Select[uuid.UUID, uuid.UUID]:
    """Judge jobs of users' own, each with its generate job that has failed or was cancelled. Those
    of an iteration end and are resumed with it."""
    upstream = aliased(Job)
    return (
        select(Job.id, upstream.id)
        .join(upstream, upstream.id == as_type(Job.params["generate_job_id"].astext, Uuid))
        .where(
            Job.kind == JobKind.judge,
            Job.status.in_(UNFINISHED),
            Job.step.is_(None),
            upstream.status.in_((Status.failed, Status.cancelled)),
        )
        .order_by(Job.id)
        .with_for_update(skip_locked=True, key_share=True, of=Job)
    )
