"""The train service: takes training jobs; lists, registers and promotes models."""

import uuid

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.train import prune, registry
from shared.db.tables import UNFINISHED, Iteration, Job, JobKind, Pair, Shard, Status
from shared.errors import Conflict, NotFound
from shared.jobs.job import NewShard, get_job, submit_job
from shared.registry.models import resolve
from shared.schemas.requests import Resume, Training, TrainRequest
from shared.web.app import create_app
from shared.web.idempotency import OnceDep
from shared.web.job_routes import JobRead, find_job, jobs_router, params_of, resume, submitted
from shared.web.session import SessionDep

router = APIRouter(tags=["train"])
KINDS = (JobKind.train, JobKind.register, JobKind.prune)


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
    if request.iteration_id is not None:
        _refuse_without_pairs(session, request.iteration_id)
    params = params_of(request, "pairs", model=str(model.id))
    pairs = [pair.model_dump() for pair in request.pairs]
    job, is_new = submit_job(
        session,
        JobKind.train,
        params,
        [NewShard({"pairs": pairs} if pairs else {})],
        job_id=job_id,
        iteration_id=request.iteration_id,
        step=step,
    )
    return submitted(session, job, is_new)


def _refuse_without_pairs(session: Session, iteration_id: uuid.UUID) -> None:
    if session.get(Iteration, iteration_id) is None:
        raise NotFound(f"iteration_id: no iteration {iteration_id}", param="iteration_id")
    pair = select(Pair.id).where(Pair.iteration_id == iteration_id).limit(1)
    if session.scalar(pair) is None:
        raise Conflict(
            f"iteration_id: iteration {iteration_id} has chosen no pairs", param="iteration_id"
        )


@router.post("/jobs/{job_id}/resume", status_code=202)
def resume_job(job_id: uuid.UUID, session: SessionDep, change: Resume | None = None) -> JobRead:
    """Take a failed or cancelled job up again where it ended; others stay as they are. With
    `training` it begins anew, on the same pairs, with other settings."""
    job = find_job(session, job_id, KINDS)
    if change is not None and change.training is not None:
        _change(session, job, change.training)
    return resume(session, job_id)


def _change(session: Session, job: Job, training: Training) -> None:
    job = get_job(session, job.id, lock=True)
    settings = training.model_dump(mode="json")
    if job.status in UNFINISHED and job.params.get("training") == settings:
        return  # a repeat: it has them already
    if job.kind is not JobKind.train or job.status not in (Status.failed, Status.cancelled):
        raise Conflict(
            f"training: {job.kind} job {job.id} is {job.status}; only a training that failed or "
            "was cancelled takes other settings",
            param="training",
        )
    job.params = job.params | {"training": settings}
    for shard in session.scalars(select(Shard).where(Shard.job_id == job.id)):
        # What running out of memory has made of the settings before.
        shard.payload = {k: v for k, v in shard.payload.items() if k != "smaller"}


app = create_app("train", router, registry.router, prune.router, jobs_router(*KINDS))
