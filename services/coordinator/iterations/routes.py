"""The routes of iterations: start, list, read, cancel, resume."""

import uuid
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from services.coordinator.iterations import transitions
from services.coordinator.iterations.baseline import baselines_of
from services.coordinator.iterations.create import start_run
from services.coordinator.iterations.policy import STAGES
from services.coordinator.iterations.progress import IterationProgress, progress_of
from services.coordinator.iterations.state import find, job_id
from shared.auth import audit
from shared.base import ResponseModel
from shared.db.tables import Iteration, Job, Status
from shared.errors import Conflict
from shared.registry.models import resolve
from shared.schemas.requests import IterationRequest, Resume
from shared.web.idempotency import OnceDep
from shared.web.paging import Limit, Page, paginate, unix
from shared.web.session import SessionDep

router = APIRouter(tags=["iterations"])


class IterationRead(ResponseModel):
    """An iteration with its settings, progress and results."""

    id: uuid.UUID
    object: Literal["iteration"]
    run_id: uuid.UUID
    """The run that it belongs to: the iterations of one `POST /iterations`."""
    baseline_run_id: uuid.UUID | None = None
    """The run that does the same without thoughts, if one was started with this run."""
    baseline_of: uuid.UUID | None = None
    """The run with thoughts whose baseline this run is."""
    number: int
    """Position in its run, from 1."""
    status: Status
    stage: str
    """The stage it is in, or ended in: queued, generate, pair, train, validate or done."""
    progress: IterationProgress
    config: dict[str, Any]
    """The request with all defaults filled in."""
    seed_model: uuid.UUID
    """The model that the run started from."""
    parent_model: uuid.UUID | None
    """The model that this iteration trains; known once it starts."""
    result_model: uuid.UUID | None
    """The checkpoint that validation has chosen."""
    timings: dict[str, float]
    """Seconds spent in each stage."""
    report: dict[str, Any] | None
    error: dict[str, Any] | None
    """The reason why it failed, with the stage in which it did."""
    created_at: int
    started_at: int | None
    finished_at: int | None
    pruned_at: int | None
    """The time from which its outputs and checkpoints are being deleted."""


def read(session: Session, row: Iteration) -> IterationRead:
    return read_all(session, [row])[0]


def read_all(session: Session, rows: Sequence[Iteration]) -> list[IterationRead]:
    """Answers for all of the rows, in two statements however many there are."""
    progress = progress_of(session, rows)
    baselines = baselines_of(session, {row.run_id for row in rows})
    return [_read(row, progress[row.id], baselines.get(row.run_id)) for row in rows]


def _read(
    row: Iteration, progress: IterationProgress, baseline_run_id: uuid.UUID | None
) -> IterationRead:
    return IterationRead(
        id=row.id,
        object="iteration",
        run_id=row.run_id,
        baseline_run_id=baseline_run_id,
        baseline_of=row.baseline_of,
        number=row.number,
        status=row.status,
        stage=row.stage,
        progress=progress,
        config=row.config,
        seed_model=row.seed_model_id,
        parent_model=row.parent_model_id,
        result_model=row.result_model_id,
        timings={stage: row.timings[stage] for stage in STAGES if stage in row.timings},
        report=row.report,
        error=row.error,
        created_at=unix(row.created_at),
        started_at=unix(row.started_at),
        finished_at=unix(row.finished_at),
        pruned_at=unix(row.pruned_at),
    )


@router.post("/iterations", status_code=202)
def create(
    request: IterationRequest, session: SessionDep, response: Response, once: OnceDep
) -> IterationRead:
    """Start a run of `count` iterations; answers with the first one. Repeat safely with an
    `Idempotency-Key`. With `baseline` a second run starts, `baseline_run_id` in the answer."""

    def start() -> IterationRead:
        first = start_run(session, request)[0]
        audit.record(session, "iteration.create", first.id, run=str(first.run_id))
        return read(session, first)

    created = once(request, start, IterationRead)
    response.headers["Location"] = f"/iterations/{created.id}"
    return created


@router.get("/iterations")
def list_iterations(
    session: SessionDep,
    run_id: uuid.UUID | None = None,
    status: Status | None = None,
    after: uuid.UUID | None = None,
    limit: Limit = 20,
) -> Page[IterationRead]:
    query = select(Iteration)
    if run_id is not None:
        query = query.where(Iteration.run_id == run_id)
    if status is not None:
        query = query.where(Iteration.status == status)
    rows = paginate(session, query, Iteration, after, limit, lambda row: row)
    return Page[IterationRead].model_validate(dict(rows) | {"data": read_all(session, rows.data)})


@router.get("/iterations/{iteration_id}")
def get_iteration(iteration_id: uuid.UUID, session: SessionDep) -> IterationRead:
    return read(session, find(session, iteration_id))


@router.post("/iterations/{iteration_id}/cancel", status_code=202)
def cancel(iteration_id: uuid.UUID, session: SessionDep) -> IterationRead:
    """Stop this iteration and those after it in its run; a baseline goes on. Idempotent.

    The end is recorded here; the loop then ends the jobs, so a coordinator that dies in between
    leaves none at work.
    """
    first = find(session, iteration_id)
    rest = session.scalars(
        select(Iteration)
        .where(
            Iteration.run_id == first.run_id,
            Iteration.number >= first.number,
            Iteration.finished_at.is_(None),
        )
        .order_by(Iteration.number)
        .with_for_update(key_share=True)
    ).all()
    for row in rest:
        transitions.cancel(session, row)
    if rest:
        audit.record(session, "iteration.cancel", iteration_id, cancelled=len(rest))
    session.flush()
    return read(session, first)


@router.post("/iterations/{iteration_id}/resume", status_code=202)
def resume(
    iteration_id: uuid.UUID, session: SessionDep, change: Resume | None = None
) -> IterationRead:
    """Resume a failed or cancelled iteration where it ended; finished shards are kept. Later
    iterations of its run that failed because it did wait for it again.

    With `training` it trains with other settings on the pairs that it has.
    """
    row = find(session, iteration_id, lock=True)
    if row.pruned_at is not None:
        raise Conflict(
            f"iteration {iteration_id} was pruned and cannot be resumed; start a new one",
            param="id",
            code="iteration_pruned",
        )
    if row.status not in (Status.failed, Status.cancelled):
        raise Conflict(
            f"iteration {iteration_id} is {row.status}; only a failed or cancelled one "
            "can be resumed",
            param="id",
        )
    if row.parent_model_id is not None:
        resolve(session, str(row.parent_model_id), param="model")  # it may have been pruned since
    changed: dict[str, Any] = {}
    if change is not None and change.training is not None:
        _refuse_if_trained(session, row)
        changed = {"training": change.training.model_dump(mode="json")}
        row.config = row.config | changed
    # The loop resumes its jobs: calls to services have no place in this transaction.
    transitions.reopen(session, row, **changed)
    for later in session.scalars(_failed_with(row)):
        transitions.reopen(session, later)
    audit.record(session, "iteration.resume", iteration_id)
    session.flush()
    return read(session, row)


def _failed_with(row: Iteration) -> Select[Iteration]:
    """Later iterations of the run that never began, because one before them failed."""
    return (
        select(Iteration)
        .where(
            Iteration.run_id == row.run_id,
            Iteration.number > row.number,
            Iteration.pruned_at.is_(None),
            Iteration.error["code"].astext == "parent_failed",
        )
        .order_by(Iteration.number)
        .with_for_update(key_share=True)
    )


def _refuse_if_trained(session: Session, row: Iteration) -> None:
    job = session.get(Job, job_id(row.id, "train"))
    if job is not None and job.status is Status.succeeded:
        raise Conflict(
            f"training: iteration {row.id} has trained; other settings need a new iteration",
            param="training",
        )
