"""The routes that generate, judge and train have in common: read, list, cancel, resume jobs."""

import hashlib
import json
import uuid
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from shared import log
from shared.auth import audit
from shared.base import ResponseModel
from shared.db.tables import Job, JobKind, Shard, Status
from shared.errors import NotFound
from shared.jobs.broker import send_after_commit
from shared.jobs.job import cancel_job, get_job, resume_job
from shared.web.paging import Limit, Page, paginate, unix
from shared.web.session import SessionDep


class Progress(ResponseModel):
    """`done` of `total` shards; tokens counted over shards done."""

    done: int
    total: int
    tokens: int
    shard: dict[str, Any] | None
    """What the shard that reported last says of itself (a training's step and loss)."""


class JobRead(ResponseModel):
    id: uuid.UUID
    object: Literal["job"]
    kind: JobKind
    status: Status
    iteration_id: uuid.UUID | None
    step: str | None
    params: dict[str, Any]
    progress: Progress
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: int
    started_at: int | None
    finished_at: int | None


def latest_progress(session: Session, job_id: uuid.UUID) -> dict[str, Any] | None:
    """What the shard that began last says of itself."""
    return session.scalar(
        select(Shard.progress)
        .where(Shard.job_id == job_id, Shard.progress.is_not(None))
        .order_by(Shard.started_at.desc().nulls_last())
        .limit(1)
    )


def _progress(session: Session, job: Job) -> Progress:
    total = session.scalar(select(func.count()).where(Shard.job_id == job.id)) or 0
    latest = latest_progress(session, job.id)
    return Progress(done=job.shards_done, total=total, tokens=job.tokens, shard=latest)


def params_of(request: BaseModel, inline: str, **resolved: Any) -> dict[str, Any]:
    """A request as its job keeps it: of the rows in the field `inline`, which the shards carry,
    their hash alone, so that other ones under the same id are refused."""
    params = request.model_dump(mode="json") | resolved
    if rows := params.pop(inline):
        text = json.dumps(rows, sort_keys=True)
        params[f"{inline}_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return params


def read_job(session: Session, job: Job) -> JobRead:
    return JobRead(
        id=job.id,
        object="job",
        kind=job.kind,
        status=job.status,
        iteration_id=job.iteration_id,
        step=job.step,
        params=job.params,
        progress=_progress(session, job),
        result=job.result,
        error=job.error,
        created_at=unix(job.created_at),
        started_at=unix(job.started_at),
        finished_at=unix(job.finished_at),
    )


def find_job(session: Session, job_id: uuid.UUID, kinds: tuple[JobKind, ...]) -> Job:
    job = get_job(session, job_id)
    if job.kind not in kinds:
        raise NotFound(f"no {kinds[0]} job {job_id}", param="id")
    log.bind_here(job=str(job_id), iteration=job.iteration_id and str(job.iteration_id))
    return job


def submitted(session: Session, job: Job, is_new: bool) -> JobRead:
    """The answer to a submission; a job that is new is sent to the workers."""
    if is_new:
        iteration = job.iteration_id and str(job.iteration_id)
        audit.record(session, "job.create", job.id, kind=job.kind, iteration=iteration)
        send_after_commit(session, job.kind, job.id)
    return read_job(session, job)


def cancel(session: Session, job: Job) -> JobRead:
    if not job.status.terminal:
        audit.record(session, "job.cancel", job.id)
    return read_job(session, cancel_job(session, job.id))


def resume(session: Session, job_id: uuid.UUID) -> JobRead:
    job = resume_job(session, job_id)
    audit.record(session, "job.resume", job_id)
    send_after_commit(session, job.kind, job.id)
    return read_job(session, job)


def jobs_router(*kinds: JobKind) -> APIRouter:
    """Routes over the jobs of these kinds, and of no other service's."""
    router = APIRouter(tags=["jobs"])

    @router.get("/jobs")
    def list_jobs(
        session: SessionDep,
        status: Status | None = None,
        after: uuid.UUID | None = None,
        limit: Limit = 20,
    ) -> Page[JobRead]:
        query: Select[Job] = select(Job).where(Job.kind.in_(kinds))
        if status is not None:
            query = query.where(Job.status == status)
        return paginate(session, query, Job, after, limit, lambda job: read_job(session, job))

    @router.get("/jobs/{job_id}")
    def get_job(job_id: uuid.UUID, session: SessionDep) -> JobRead:
        return read_job(session, find_job(session, job_id, kinds))

    @router.post("/jobs/{job_id}/cancel")
    def cancel_job(job_id: uuid.UUID, session: SessionDep) -> JobRead:
        """End a job. One that has ended already stays as it is."""
        return cancel(session, find_job(session, job_id, kinds))

    return router


def resume_router(*kinds: JobKind) -> APIRouter:
    router = APIRouter(tags=["jobs"])

    @router.post("/jobs/{job_id}/resume", status_code=202)
    def resume_job(job_id: uuid.UUID, session: SessionDep) -> JobRead:
        """Take a failed or cancelled job up again where it ended; others stay as they are."""
        find_job(session, job_id, kinds)
        return resume(session, job_id)

    return router
