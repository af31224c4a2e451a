"""The judge service: takes scoring jobs, lists their judgments."""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.base import ResponseModel
from shared.db.tables import Job, JobKind, Judgment, Shard, Status
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.jobs.job import NewShard, slices, submit_job
from shared.registry.models import resolve
from shared.schemas import judge_permissions
from shared.schemas.judges import model_of, with_model
from shared.schemas.requests import JudgeItem, JudgeRequest
from shared.web.app import create_app
from shared.web.idempotency import OnceDep
from shared.web.job_routes import (
    JobRead,
    find_job,
    jobs_router,
    params_of,
    resume_router,
    submitted,
)
from shared.web.paging import Limit, Page, paginate_by_id
from shared.web.session import SessionDep

router = APIRouter(tags=["judge"])


class JudgmentRead(ResponseModel):
    id: int
    item_index: int | None
    completion_id: int | None
    score: float | None
    """None where the judge gave none; `details.reason` says why."""
    judge: str
    details: dict[str, Any]


@router.post("/judge", status_code=202)
def judge(request: JudgeRequest, session: SessionDep, once: OnceDep) -> JobRead:
    """Score responses, under an id made here."""
    return once(request, lambda: _submit(session, uuid.uuid4(), request), JobRead)


@router.put("/jobs/{job_id}", status_code=202)
def put_job(
    job_id: uuid.UUID,
    request: JudgeRequest,
    session: SessionDep,
    step: str | None = None,
    iteration_id: uuid.UUID | None = None,
) -> JobRead:
    """The same under the caller's id; repeating it finds the job."""
    return _submit(session, job_id, request, step, iteration_id)


def _submit(
    session: Session,
    job_id: uuid.UUID,
    request: JudgeRequest,
    step: str | None = None,
    iteration_id: uuid.UUID | None = None,
) -> JobRead:
    judge_permissions.check(request.judge, "judge")
    judge = with_model(request.judge, lambda ref: _model_id(session, ref))
    request = request.model_copy(update={"judge": judge})
    params = params_of(request, "items", model=model_of(judge))
    job, is_new = submit_job(
        session,
        JobKind.judge,
        params,
        _shards(session, request),
        job_id=job_id,
        iteration_id=iteration_id,
        step=step,
    )
    return submitted(session, job, is_new)


def _shards(session: Session, request: JudgeRequest) -> Iterator[NewShard]:
    """One shard for each of the generate job's, to be judged as soon as that one is done."""
    if request.generate_job_id is None:
        for start, items in _inline(request):
            yield NewShard({"start": start, "items": [i.model_dump() for i in items]})
        return
    _generate_job(session, request.generate_job_id, "generate_job_id")
    if request.against_generate_job_id is not None:
        _check_opponent(session, request.generate_job_id, request.against_generate_job_id)
    upstream = select(Shard.id).where(Shard.job_id == request.generate_job_id)
    for shard_id in session.scalars(upstream.order_by(Shard.index)).all():
        yield NewShard({"generate_shard_id": shard_id}, after_shard_id=shard_id)


def _generate_job(session: Session, job_id: uuid.UUID, param: str) -> Job:
    job = session.get(Job, job_id)
    if job is None or job.kind is not JobKind.generate:
        raise NotFound(f"{param}: no generate job {job_id}", param=param)
    return job


def _check_opponent(session: Session, ours: uuid.UUID, theirs: uuid.UUID) -> None:
    """It must have all its responses, and to the same prompts. A job may also face itself."""
    if ours == theirs:
        return
    opponent = _generate_job(session, theirs, "against_generate_job_id")
    if opponent.status is not Status.succeeded:
        raise Conflict(
            f"against_generate_job_id: job {theirs} is {opponent.status}; it must have succeeded",
            param="against_generate_job_id",
        )
    asked = [
        session.scalars(
            select(Shard.payload).where(Shard.job_id == job_id).order_by(Shard.index)
        ).all()
        for job_id in (ours, theirs)
    ]
    if asked[0] != asked[1]:
        raise InvalidRequest(
            f"against_generate_job_id: job {theirs} answers other prompts, or in other shards",
            param="against_generate_job_id",
        )


def _model_id(session: Session, reference: str) -> str:
    return str(resolve(session, reference, param="judge.model").id)


def _inline(request: JudgeRequest) -> Iterator[tuple[int, Sequence[JudgeItem]]]:
    """(offset, items); what is judged together is in one shard, however many that are."""
    together = request.judge.compares
    return slices(
        request.items,
        request.shard_size,
        joined=lambda a, b: together and a.instruction == b.instruction,
    )


@router.get("/jobs/{job_id}/judgments")
def list_judgments(
    job_id: uuid.UUID, session: SessionDep, after: int | None = None, limit: Limit = 100
) -> Page[JudgmentRead]:
    job = find_job(session, job_id, (JobKind.judge,))
    query = select(Judgment).where(Judgment.job_id == job.id)
    return paginate_by_id(session, query, Judgment, after, limit, JudgmentRead.model_validate)


app = create_app("judge", router, jobs_router(JobKind.judge), resume_router(JobKind.judge))
