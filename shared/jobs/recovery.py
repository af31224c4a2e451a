"""Bringing lost work back: sweep dead shards, release the shards of a process that has exited."""

import uuid
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import Select, Uuid, and_, func, or_, select
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
    """Give back the shards of a worker that has exited; returns their number.

    If the attempt does not count, as at an orderly stop, another worker may begin at once.
    """
    job = get_job(session, job_id, lock=True)
    held = session.scalars(
        select(Shard)
        .where(Shard.job_id == job_id, Shard.worker == worker, Shard.status == Status.running)
        .order_by(Shard.index)
        .with_for_update(key_share=True)  # waits for a worker that is taking over an expired one
    ).all()
    if held and not counts:
        job.sent_at = None
    for shard in held:
        if not counts:
            shard.status, shard.attempt, shard.token = Status.queued, shard.attempt - 1, None
            continue
        if shard.token is None:
            break  # the shard before it has ended the job, and all its shards
        claim = Claim(shard.id, job_id, shard.index, shard.payload, shard.attempt, shard.token)
        fail_shard(session, claim, error, max_attempts=max_attempts)
    return len(held)


def sweep(
    session: Session, *, resend_after_seconds: float, lease_seconds: float, max_attempts: int
) -> list[Job]:
    """Fail jobs that cannot go on, and return the jobs to send again.

    A job fails if a shard died on its last attempt, or if it judges responses that will not come.
    A job is sent again if it has a shard to take and no message was sent for it lately: a message
    that Redis lost, doubled or delivers late changes nothing.
    """
    _fail_jobs_that_lost_their_workers(session, lease_seconds, max_attempts)
    for job_id, upstream_id in session.execute(_judges_without_responses()).all():
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
        .with_for_update(skip_locked=True, key_share=True, of=Job)
    )
    jobs = list(session.scalars(due))
    for job in jobs:
        job.sent_at = cast(datetime, func.clock_timestamp())
    return jobs


def _fail_jobs_that_lost_their_workers(
    session: Session, lease_seconds: float, max_attempts: int
) -> None:
    expired = and_(
        past_grace_period(lease_seconds),
        Shard.status == Status.running,
        Shard.lease_until < func.clock_timestamp(),
        Shard.attempt >= max_attempts,
    )
    # Jobs before shards. A job that another transaction has locked waits for the next sweep.
    jobs = session.scalars(
        select(Job.id)
        .where(select(Shard.id).where(Shard.job_id == Job.id, expired).exists())
        .with_for_update(skip_locked=True, key_share=True, of=Job)
    ).all()
    shards = session.scalars(
        select(Shard)
        .where(Shard.job_id.in_(jobs), expired)
        .order_by(Shard.job_id, Shard.index)
        .with_for_update(skip_locked=True, key_share=True)
    )
    for shard in shards.all():
        shard.leases_lost += 1
        if shard.token is None:
            continue  # the shard before it has ended their job, and all its shards
        error = shard.error or {
            "code": "worker_lost",
            "message": f"shard {shard.index} lost its worker {shard.worker} "
            f"{shard.attempt} times without an error of its own",
        }
        shard.status, shard.error, shard.token = Status.failed, error, None
        fail_job(session, shard.job_id, error)


def _judges_without_responses() -> Select[uuid.UUID, uuid.UUID]:
    """Judge jobs whose generate job has failed or was cancelled, each with that job.

    Jobs of an iteration are left out: they end with it, and are resumed with it.
    """
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
