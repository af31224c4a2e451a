"""The transitions of an iteration, each written in the caller's transaction with its event.

The iteration's row must be locked. Nothing here waits for a service or computes for long, so that
whoever else needs the row, such as a cancel, gets it at once.
"""

import uuid
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.coordinator.iterations import events
from services.coordinator.iterations.state import own_step
from shared.db.tables import UNFINISHED, Iteration, Job, Status
from shared.jobs.job import cancel_job


def lock(session: Session, iteration_id: uuid.UUID, *, skip: bool = False) -> Iteration | None:
    """The iteration with its row locked. None if it does not exist or, with `skip`, if another
    transaction holds it."""
    return session.scalar(
        select(Iteration)
        .where(Iteration.id == iteration_id)
        # No key update: services insert rows that refer to the iteration meanwhile.
        .with_for_update(skip_locked=skip, key_share=True)
        .execution_options(populate_existing=True)
    )


def start(session: Session, iteration: Iteration) -> bool:
    """Begin once the previous iteration of the run has succeeded. Returns True if it has begun."""
    previous = session.scalar(
        select(Iteration).where(
            Iteration.run_id == iteration.run_id, Iteration.number == iteration.number - 1
        )
    )
    if previous is not None and previous.finished_at is None:
        return False
    if previous is not None and previous.status is not Status.succeeded:
        message = f"iteration {previous.number} of this run {previous.status}"
        fail(session, iteration, {"code": "parent_failed", "stage": "queued", "message": message})
        return False
    iteration.parent_model_id = (
        previous.result_model_id if previous is not None else iteration.seed_model_id
    )
    iteration.status, iteration.started_at = Status.running, datetime.now(UTC)
    return True


def enter(session: Session, iteration: Iteration, stage: str) -> None:
    """Move to a stage, if it is another one, and add the seconds of the last one to `timings`."""
    if iteration.stage == stage:
        return
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    if iteration.stage_started_at is not None:
        seconds = (now - iteration.stage_started_at).total_seconds()
        earlier = iteration.timings.get(iteration.stage, 0.0)
        iteration.timings = iteration.timings | {iteration.stage: round(earlier + seconds, 3)}
    iteration.stage, iteration.stage_started_at = stage, now
    events.record(session, iteration.id, "stage", stage)


def succeed(session: Session, iteration: Iteration, model: str) -> None:
    enter(session, iteration, "done")
    iteration.status, iteration.finished_at = Status.succeeded, datetime.now(UTC)
    chosen = str(iteration.result_model_id)
    events.record(session, iteration.id, "status", f"succeeded: {model}", model=chosen)


def fail(session: Session, iteration: Iteration, error: dict[str, Any]) -> None:
    """End the iteration with an error, and its jobs with it."""
    iteration.status, iteration.error = Status.failed, error
    iteration.finished_at = datetime.now(UTC)
    events.record(session, iteration.id, "status", f"failed: {error['message']}", error=error)
    cancel_orphaned_jobs(session, iteration)


def cancel(session: Session, iteration: Iteration) -> None:
    iteration.status, iteration.finished_at = Status.cancelled, datetime.now(UTC)
    events.record(session, iteration.id, "status", "cancelled")


def reopen(session: Session, iteration: Iteration, **changed: Any) -> None:
    """Undo the end of an iteration. The loop then resumes the jobs that ended before
    `stage_started_at`."""
    iteration.status = Status.queued if iteration.parent_model_id is None else Status.running
    iteration.error, iteration.finished_at = None, None
    iteration.stage_started_at = cast(datetime, func.clock_timestamp())
    if iteration.pairing is not None and iteration.pairing["kept"] == 0:
        iteration.pairing = None
    events.record(session, iteration.id, "status", "resumed", **changed)


def cancel_orphaned_jobs(session: Session, iteration: Iteration) -> None:
    """Cancel the jobs of an iteration that has ended.

    Written here and not asked of their services: under the iteration's lock no resume can come in
    between, whose jobs a late request would cancel.
    """
    orphaned = select(Job.id).where(
        Job.iteration_id == iteration.id, own_step(), Job.status.in_(UNFINISHED)
    )
    for job_id in session.scalars(orphaned.order_by(Job.id)).all():
        cancel_job(session, job_id)
