"""The generate service: takes sampling jobs, lists their completions."""

import uuid
from collections.abc import Iterator

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.auth.thoughts import MayReadThoughts, shown
from shared.base import ResponseModel
from shared.db.tables import Completion, IterationPrompt, JobKind
from shared.errors import InvalidRequest
from shared.jobs.job import NewShard, slices, submit_job
from shared.registry.models import resolve
from shared.schemas.requests import GenerateRequest
from shared.thinking.formats import ThoughtFormat
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

router = APIRouter(tags=["generate"])


class CompletionRead(ResponseModel):
    id: int
    prompt_index: int
    sample_index: int
    response: str | None
    """None where the output does not parse. Without the key that may read thoughts, also without
    those that the model began in it."""
    output: str | None
    """Thought included; only with the key that may read thoughts."""
    thought_tokens: int
    response_tokens: int
    truncated: bool
    forced: bool


@router.post("/generate", status_code=202)
def generate(request: GenerateRequest, session: SessionDep, once: OnceDep) -> JobRead:
    """Sample outputs for prompts, under an id made here."""
    return once(request, lambda: _submit(session, uuid.uuid4(), request), JobRead)


@router.put("/jobs/{job_id}", status_code=202)
def put_job(
    job_id: uuid.UUID, request: GenerateRequest, session: SessionDep, step: str | None = None
) -> JobRead:
    """The same under the caller's id; repeating it finds the job."""
    return _submit(session, job_id, request, step)


def _submit(
    session: Session, job_id: uuid.UUID, request: GenerateRequest, step: str | None = None
) -> JobRead:
    model = resolve(session, request.model, param="model")
    params = params_of(request, "prompts", model=str(model.id))
    job, is_new = submit_job(
        session,
        JobKind.generate,
        params,
        _shards(session, request),
        job_id=job_id,
        iteration_id=request.iteration_id,
        step=step,
    )
    return submitted(session, job, is_new)


def _shards(session: Session, request: GenerateRequest) -> Iterator[NewShard]:
    """Shards of inline prompts carry the prompts, those of an iteration only their ids."""
    if request.iteration_id is None:
        for start, prompts in slices(request.prompts, request.shard_size):
            yield NewShard({"start": start, "prompts": [p.model_dump() for p in prompts]})
        return
    ids = session.scalars(
        select(IterationPrompt.prompt_id)
        .where(
            IterationPrompt.iteration_id == request.iteration_id,
            IterationPrompt.split == request.split,
        )
        .order_by(IterationPrompt.position)
    ).all()
    if not ids:
        raise InvalidRequest(
            f"iteration_id: iteration {request.iteration_id} has no {request.split} prompts",
            param="iteration_id",
        )
    for start, some in slices(ids, request.shard_size):
        yield NewShard({"start": start, "prompt_ids": list(some)})


@router.get("/jobs/{job_id}/completions")
def list_completions(
    job_id: uuid.UUID,
    session: SessionDep,
    thoughts: MayReadThoughts,
    after: int | None = None,
    limit: Limit = 100,
) -> Page[CompletionRead]:
    job = find_job(session, job_id, (JobKind.generate,))
    fmt = ThoughtFormat.model_validate(job.params["thought_format"])

    def read(row: Completion) -> CompletionRead:
        return CompletionRead.model_validate(row).model_copy(
            update={
                "response": shown(row, fmt, thoughts),
                "output": row.output if thoughts else None,
            }
        )

    query = select(Completion).where(Completion.job_id == job.id)
    return paginate_by_id(session, query, Completion, after, limit, read)


app = create_app("generate", router, jobs_router(JobKind.generate), resume_router(JobKind.generate))
