"""The train service: takes training jobs; lists, registers and promotes models."""

import uuid

from fastapi import APIRouter
from sqlalchemy.orm import Session

from services.train import registry
from shared import jobs
from shared.app import create_app
from shared.broker import send_after_commit
from shared.db import SessionDep
from shared.idempotency import OnceDep
from shared.job_routes import JobRead, jobs_router, read_job
from shared.jobs import NewShard
from shared.model_store import resolve
from shared.models import JobKind
from shared.schemas import TrainRequest

router = APIRouter(tags=["train"])


@router.post("/train", status_code=202)
def train(request: TrainRequest, session: SessionDep, once: OnceDep) -> JobRead:
    """Train a model on pairs, under an id made here; each epoch makes a checkpoint."""
    return once(request, lambda: _submit(session, uuid.uuid4(), request), JobRead)


@router.put("/jobs/{job_id}", status_code=202)
def put_job(
    job_id: uuid.UUID, request: TrainRequest, session: SessionDep, step: str | None = None
) -> JobRead:
    """The same under the caller's id; repeating it finds the job."""
    return _submit(session, job_id, request, step)


def _submit(
    session: Session, job_id: uuid.UUID, request: TrainRequest, step: str | None = None
) -> JobRead:
    model = resolve(session, request.model, param="model")
    params = request.model_dump(mode="json", exclude={"pairs"}) | {"model": str(model.id)}
    pairs = [pair.model_dump() for pair in request.pairs]
    job, is_new = jobs.submit(
        session,
        JobKind.train,
        params,
        [NewShard({"pairs": pairs} if pairs else {})],
        job_id=job_id,
        iteration_id=request.iteration_id,
        step=step,
    )
    if is_new:
        send_after_commit(session, job.kind, job.id)
    return read_job(session, job)


app = create_app("train", router, registry.router, jobs_router(JobKind.train, JobKind.register))
