"""The routes that generate, judge and train have in common: read, list, cancel, resume jobs."""

import hashlib
import json
import uuid
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from shared import log
from shared.auth import audit
from shared.base import ResponseModel, Unix
from shared.db.tables import Job, JobKind, Status
from shared.errors import NotFound
from shared.jobs.broker import send_after_commit
from shared.jobs.job import cancel_job, get_job, resume_job
from shared.web.paging import Limit, Page, paginate
from shared.web.session import SessionDep


class Progress(ResponseModel):
    """Shards done and in all, and the tokens of those done."""

    done: int
    total: int
    tokens: int
    shard: dict[str, Any] | None
    """Progress of the shard that began last, such as a training's step and loss."""


class JobRead(ResponseModel):
    id: uuid.UUID
    object: Literal["job"] = "job"
    kind: JobKind
    status: Status
    iteration_id: uuid.UUID | None
    step: str | None
    params: dict[str, Any]
    progress: Progress
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: Unix
    started_at: Unix | None
    finished_at: Unix | None


def params_of(request: BaseModel, inline: str, **resolved: Any) -> dict[str, Any]:
    """Parameters of a job: its request, with the rows in the field `inline` replaced by their hash.

    The shards carry the rows. The hash lets a repeated id with other rows be refused.
    """
    params = request.model_dump(mode="json") | resolved
    if rows := params.pop(inline):
        text = json.dumps(rows, sort_keys=True)
        params[f"{inline}_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return params


def find_job(session: Session, job_id: uuid.UUID, kinds: tuple[JobKind, ...]) -> Job:
    job = get_job(session, job_id)
    if job.kind not in kinds:
        raise NotFound(f"no {kinds[0]} job {job_id}", param="id")
    log.bind_here(job=str(job_id), iteration=job.iteration_id and str(job.iteration_id))
    return job


def submitted(session: Session, job: Job, is_new: bool) -> JobRead:
    """Answer a submission; a new job is sent to the workers."""
    if is_new:
        iteration = job.iteration_id and str(job.iteration_id)
        audit.record(session, "job.create", job.id, kind=job.kind, iteration=iteration)
        send_after_commit(session, job.kind, job.id)
    return JobRead.model_validate(job)


def cancel(session: Session, job: Job) -> JobRead:
    if not job.status.terminal:
        audit.record(session, "job.cancel", job.id)
    return JobRead.model_validate(cancel_job(session, job.id))


def resume(session: Session, job_id: uuid.UUID) -> JobRead:
    job = resume_job(session, job_id)
    audit.record(session, "job.resume", job_id)
    send_after_commit(session, job.kind, job.id)
    return JobRead.model_validate(job)


def jobs_router(*kinds: JobKind) -> APIRouter:
    """Routes over the jobs of these kinds only."""
    router = APIRouter(tags=["jobs"])

    @router.get("/jobs")
    def list_jobs(
        session: SessionDep,
        status: Status | None = None,
        after: uuid.UUID | None = None,
        limit: Limit = 20,
    ) -> Page[JobRead]:
        query = select(Job).options(undefer(Job.latest_progress)).where(Job.kind.in_(kinds))
        if status is not None:
            query = query.where(Job.status == status)
        return paginate(session, query, Job, after, limit, JobRead.model_validate)

    @router.get("/jobs/{job_id}")
    def get_job(job_id: uuid.UUID, session: SessionDep) -> JobRead:
        return JobRead.model_validate(find_job(session, job_id, kinds))

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
