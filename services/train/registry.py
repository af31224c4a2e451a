"""Models: register, list, read, release (a checkpoint gets its name), promote."""

import uuid
from datetime import datetime
from typing import Any, Literal, cast

from fastapi import APIRouter
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from shared.auth import audit
from shared.base import RequestModel, ResponseModel, Unix
from shared.db.engine import notify
from shared.db.tables import Iteration, Job, JobKind, Model, Status
from shared.errors import Conflict, NotFound
from shared.jobs.broker import send_after_commit
from shared.jobs.job import NewShard, submit_job
from shared.registry.lineage import checkpoint_lineage, iteration_of
from shared.registry.models import find, pruned, ref, resolve
from shared.schemas.requests import Effort, ModelRegistration, Name, Promotion
from shared.thinking.formats import ThoughtFormat
from shared.web.idempotency import OnceDep
from shared.web.paging import Limit, Page, paginate
from shared.web.session import SessionDep

router = APIRouter(tags=["models"])


ModelStatus = Literal["registering", "ready", "failed", "pruned"]


class ModelRead(ResponseModel):
    id: uuid.UUID
    object: Literal["model"]
    ref: str
    name: str | None
    version: int | None
    status: ModelStatus
    error: dict[str, Any] | None
    source: str
    weights_sha256: str | None
    parent_id: uuid.UUID | None
    job_id: uuid.UUID | None
    epoch: int | None
    thought_format: ThoughtFormat | None
    lineage: dict[str, Any]
    created_at: Unix
    promoted_at: Unix | None
    thought_budgets: dict[Effort, int] | None


class Release(RequestModel):
    """Makes a checkpoint the next version of a family, with the lineage that led to it."""

    name: Name
    thought_format: ThoughtFormat
    lineage: dict[str, Any]


def _read(session: Session, model: Model) -> ModelRead:
    return _read_with_job(model, session.get(Job, model.job_id) if model.job_id else None)


def _read_with_job(model: Model, job: Job | None) -> ModelRead:
    return ModelRead(
        id=model.id,
        object="model",
        ref=ref(model),
        name=model.name,
        version=model.version,
        status=_status(model, job),
        error=job.error if job and model.path is None else None,
        source=model.source,
        weights_sha256=model.weights_sha256,
        parent_id=model.parent_id,
        job_id=model.job_id,
        epoch=model.epoch,
        thought_format=(
            ThoughtFormat.model_validate(model.thought_format) if model.thought_format else None
        ),
        lineage=model.lineage,
        created_at=model.created_at,
        promoted_at=model.promoted_at,
        thought_budgets=model.thought_budgets,
    )


def _status(model: Model, job: Job | None) -> ModelStatus:
    if model.path is not None:
        return "ready"
    if pruned(model):
        return "pruned"
    failed = job is not None and job.status in (Status.failed, Status.cancelled)
    return "failed" if failed else "registering"


@router.post("/models", status_code=202)
def register(request: ModelRegistration, session: SessionDep, once: OnceDep) -> ModelRead:
    """Fetch, convert or check the weights in a job; the model is usable once it is `ready`."""
    return once(request, lambda: _register(session, request), ModelRead)


def _register(session: Session, request: ModelRegistration) -> ModelRead:
    model_id, job_id = uuid.uuid4(), uuid.uuid4()
    params = {"source": request.source, "model_id": str(model_id)}
    job, _ = submit_job(session, JobKind.register, params, [NewShard({})], job_id=job_id)
    model = Model(
        id=model_id,
        name=request.name,
        version=_next_version(session, request.name),
        source=request.source,
        job_id=job.id,
        thought_format=request.thought_format.model_dump() if request.thought_format else None,
        lineage={},
    )
    session.add(model)
    session.flush()
    audit.record(session, "model.register", ref(model), id=str(model_id), source=request.source)
    send_after_commit(session, job.kind, job.id)
    return _read(session, model)


@router.put("/models/{model_id}/release")
def release(model_id: uuid.UUID, request: Release, session: SessionDep) -> ModelRead:
    """Name a checkpoint. Repeating it changes nothing."""
    model = resolve(session, str(model_id), param="model_id", change=True)
    is_new = model.name is None
    _name(session, model, request.name, request.thought_format.model_dump(), request.lineage)
    if is_new:
        audit.record(session, "model.release", ref(model), id=str(model.id))
    return _read(session, model)


@router.get("/models")
def list_models(
    session: SessionDep,
    after: uuid.UUID | None = None,
    limit: Limit = 20,
    checkpoints: bool = False,
) -> Page[ModelRead]:
    """Named models; with `checkpoints` also those that no iteration has chosen."""
    query = select(Model, Job).outerjoin(Job, Job.id == Model.job_id)
    if not checkpoints:
        query = query.where(Model.name.is_not(None))
    return paginate(session, query, Model, after, limit, _read_with_job)


@router.get("/models/{reference}")
def get_model(reference: str, session: SessionDep) -> ModelRead:
    model = find(session, reference)
    if model is None:
        raise NotFound(f"no model {reference!r}", param="model", code="model_not_found")
    return _read(session, model)


@router.post("/models/{reference}/promote")
def promote(reference: str, session: SessionDep, promotion: Promotion | None = None) -> ModelRead:
    """Serve this model in chat from now on. The swap happens without a restart."""
    promotion = promotion or Promotion()
    model = resolve(session, reference, param="model", change=True)
    _name_promoted(session, model, promotion)
    model.promoted_at = cast(datetime, func.clock_timestamp())  # replicas' clocks may differ
    if promotion.thought_budgets is not None:
        model.thought_budgets = dict(promotion.thought_budgets.items())
    audit.record(session, "model.promote", ref(model), id=str(model.id))
    notify(session, f"promoted {model.id}")
    session.flush()
    return _read(session, model)


def _name_promoted(session: Session, model: Model, promotion: Promotion) -> None:
    """Chat serves models by their names, so a checkpoint is promoted with one."""
    fmt = promotion.thought_format.model_dump() if promotion.thought_format else None
    if promotion.name is not None:
        iteration = iteration_of(session, model.job_id)
        thinks = fmt or _trained_with(session, model, iteration)
        lineage = checkpoint_lineage(session, iteration, model.lineage)
        _name(session, model, promotion.name, thinks, lineage)
    if model.name is None:
        raise Conflict(
            "name: this checkpoint has no name that chat could serve it by; promote it with a "
            "`name`, and it becomes the next version of that family",
            param="name",
            code="name_required",
        )
    if promotion.name not in (None, model.name):
        raise Conflict(f"name: this model is {ref(model)} already", param="name")
    if fmt not in (None, model.thought_format):
        raise Conflict(
            f"thought_format: {ref(model)} has its own; a promotion sets that of a checkpoint "
            "which it names",
            param="thought_format",
        )


def _trained_with(
    session: Session, model: Model, iteration: Iteration | None
) -> dict[str, Any] | None:
    """The thought format of the iteration whose pairs made it. Of pairs that came with a request
    none is known, so the model is taken to think as its parent."""
    if iteration is not None:
        fmt: dict[str, Any] = iteration.config["thought_format"]
        return fmt
    parent = session.get(Model, model.parent_id) if model.parent_id else None
    return parent.thought_format if parent else None


def _name(
    session: Session, model: Model, name: str, fmt: dict[str, Any] | None, lineage: dict[str, Any]
) -> None:
    """Make a checkpoint the next version of a family, unless it has its name already."""
    if model.name is None:
        model.version = _next_version(session, name)
        model.name = name
        model.thought_format = fmt
        model.lineage = model.lineage | lineage
        session.flush()


def _next_version(session: Session, name: str) -> int:
    # One at a time for a name, so that two registrations cannot take the same version.
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:n))"), {"n": f"model:{name}"})
    latest = session.scalar(select(func.max(Model.version)).where(Model.name == name))
    return (latest or 0) + 1
