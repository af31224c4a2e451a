"""Retention: marks runs that ended long ago as pruned, and has a worker delete what nothing needs.

The mark is all that a request writes. The loop then sends the jobs, so that a coordinator that
dies in between leaves none behind; from the mark on nothing of the run can be resumed.
"""

import logging
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from services.coordinator.iterations import events
from services.coordinator.iterations.state import job_id
from services.coordinator.job_services import Services
from shared.auth import audit
from shared.base import RequestModel, ResponseModel
from shared.db.engine import transaction
from shared.db.tables import UNFINISHED, Completion, Iteration, Job, JobKind, Model
from shared.errors import PlatformError
from shared.registry.retention import in_use, of_lineage, unneeded, unpaired
from shared.settings import get_settings
from shared.web import idempotency
from shared.web.session import SessionDep

router = APIRouter(tags=["retention"])
logger = logging.getLogger(__name__)
POLL_INTERVAL_S = 3600.0
SENT_AT_ONCE = 20
"""Jobs a tick sends: it has running iterations to care for, too."""


class PruneRequest(RequestModel):
    older_than_days: float = Field(ge=0, le=36_500)
    """Since the last iteration of a run ended."""
    dry_run: bool = False
    """Only say what would go."""


class PruneRead(ResponseModel):
    """The rows and files that are deleted, or would be."""

    object: Literal["prune"] = "prune"
    dry_run: bool
    iterations: int
    completions: int
    checkpoints: int
    bytes: int
    """Bytes of the deleted checkpoints."""


@router.post("/prune")
def prune(request: PruneRequest, session: SessionDep) -> PruneRead:
    """Delete completions and checkpoints of runs that ended long ago. What a named or promoted
    model was made from stays. Repeating it finds nothing more."""
    with session.begin_nested() as marking:
        ids = mark(session, request.older_than_days)
        found = _count(session, ids, request.dry_run)
        if request.dry_run:
            marking.rollback()
    if ids and not request.dry_run:
        audit.record(session, "prune", f"{len(ids)} iterations", **found.model_dump())
    return found


def mark(session: Session, older_than_days: float) -> list[uuid.UUID]:
    """Iterations of runs that are due, now marked. Whole runs, for they share their validation."""
    before = datetime.now(UTC) - timedelta(days=older_than_days)
    ended = and_(Iteration.finished_at.is_not(None), Iteration.finished_at < before)
    due = session.scalars(
        select(Iteration.run_id)
        .where(Iteration.pruned_at.is_(None))
        .group_by(Iteration.run_id)
        .having(func.bool_and(ended))
        # The newest first: one that began with another's checkpoint sets that one free.
        .order_by(func.max(Iteration.created_at).desc(), Iteration.run_id)
    ).all()
    return [id_ for run_id in due for id_ in _mark_run(session, run_id, before)]


def _mark_run(session: Session, run_id: uuid.UUID, before: datetime) -> list[uuid.UUID]:
    rows = session.scalars(
        select(Iteration)
        .where(Iteration.run_id == run_id)
        .order_by(Iteration.number)
        # A resume that was first has opened the row again; one that waits here is refused.
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).all()
    ids = [row.id for row in rows]
    due = all(r.finished_at and r.finished_at < before and not r.pruned_at for r in rows)
    if not due or _at_work(session, ids):
        return []
    for row in rows:
        row.pruned_at = datetime.now(UTC)
        events.record(session, row.id, "status", "pruned")
    session.flush()
    return ids


def _at_work(session: Session, ids: Sequence[uuid.UUID]) -> bool:
    """Tell if a job of these iterations has not ended, or something else works with a checkpoint of
    theirs. Pruning waits for it, since a pruned iteration is not looked at again."""
    found = session.scalar(
        select(Job.id)
        .outerjoin(
            Model,
            and_(Model.job_id == Job.id, Model.name.is_(None), Model.promoted_at.is_(None)),
        )
        .where(
            Job.iteration_id.in_(ids),
            or_(Job.status.in_(UNFINISHED), Model.id.in_(in_use())),
        )
        .limit(1)
    )
    return found is not None


def _count(session: Session, ids: Sequence[uuid.UUID], dry_run: bool) -> PruneRead:
    ours = Job.iteration_id.in_(ids)
    checkpoints, size = session.execute(
        select(func.count(), func.coalesce(func.sum(Model.size_bytes), 0))
        .join(Job, Job.id == Model.job_id)
        .where(ours, unneeded())
    ).one()
    completions = session.scalar(
        select(func.count(Completion.id))
        .join(Job, Job.id == Completion.job_id)
        .where(ours, unpaired(of_lineage()))
    )
    return PruneRead(
        dry_run=dry_run,
        iterations=len(ids),
        completions=completions or 0,
        checkpoints=checkpoints,
        bytes=size,
    )


def send(services: Services) -> None:
    """Command the deletion of what was marked and not sent yet."""
    sent = select(Job.id).where(Job.iteration_id == Iteration.id, Job.kind == JobKind.prune)
    with transaction() as session:
        marked = session.scalars(
            select(Iteration.id)
            .where(Iteration.pruned_at.is_not(None), ~sent.exists())
            .limit(SENT_AT_ONCE)
        ).all()
    for iteration_id in marked:
        try:
            body = {"iteration_id": str(iteration_id)}
            services.train.put(f"/prune/{job_id(iteration_id, 'prune')}", body)
        except PlatformError as error:
            logger.warning("will retry to prune %s: %s", iteration_id, error.message)
            return


class Retention:
    """Once an hour, forgets answers kept for repeats, and prunes by the setting, where there is
    one. Of several loops the first to look marks a run; the others find it marked."""

    def __init__(self) -> None:
        self._next = 0.0

    def look(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + POLL_INTERVAL_S
        with transaction() as session:
            idempotency.forget_expired(session)
        if (days := get_settings().retention_days) is None:
            return
        with transaction() as session:
            marked = mark(session, days)
        logger.info("marked as pruned", extra={"iterations": len(marked)})
