"""An iteration's trace, made of its rows: from `POST /iterations` to the model.

Only ids, counts and names of stages are in it; of an error its code, for a message may quote a
prompt.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db.tables import Event, Iteration, Job, JobKind, Shard, Status

Attributes = dict[str, str | int | float]
ROOT = "iteration"


@dataclass(frozen=True)
class Span:
    key: str
    """Unique in its trace, and the same whenever the trace is made."""
    parent: str | None
    name: str
    start: datetime
    end: datetime
    attributes: Attributes = field(default_factory=dict)
    error: str | None = None
    """Code of the error that it ended with."""


def spans(session: Session, iteration: Iteration) -> list[Span]:
    """The trace of an iteration that has ended, with jobs that have ended."""
    stages = list(_stages(session, iteration))
    jobs = session.scalars(
        select(Job)
        .where(Job.iteration_id == iteration.id, Job.kind != JobKind.prune)
        .order_by(Job.created_at)
    ).all()
    made = [_root(iteration), *stages]
    made += [_job(job, _parent(job, iteration, stages)) for job in jobs if job.finished_at]
    return [*made, *_workers(session, jobs)]


def _root(iteration: Iteration) -> Span:
    assert iteration.finished_at is not None
    attributes: Attributes = {
        "forethought.iteration.id": str(iteration.id),
        "forethought.iteration.number": iteration.number,
        "forethought.iteration.status": iteration.status,
        "forethought.run.id": str(iteration.run_id),
    }
    if iteration.result_model_id is not None:
        attributes["forethought.model.id"] = str(iteration.result_model_id)
    return Span(
        ROOT,
        None,
        "POST /iterations",
        iteration.created_at,
        iteration.finished_at,
        attributes,
        _code(iteration.status, iteration.error),
    )


def _stages(session: Session, iteration: Iteration) -> Iterator[Span]:
    """From its beginning to the next one's; one that failed begins again where it is resumed."""
    events = session.execute(
        select(Event.id, Event.type, Event.message, Event.created_at)
        .where(Event.iteration_id == iteration.id, Event.type.in_(("stage", "status")))
        .order_by(Event.id)
    ).all()
    name = None
    for event, after in pairwise(events):
        if event.type == "stage":
            name = event.message
        elif event.message != "resumed":
            continue
        if name is not None:
            yield Span(f"stage:{event.id}", ROOT, name, event.created_at, after.created_at)


def _parent(job: Job, iteration: Iteration, stages: Sequence[Span]) -> str:
    """The stage that a job belongs to, the last time that it was entered."""
    of_parent = (job.step or "").endswith(f":{iteration.parent_model_id}")
    if job.kind is JobKind.train:
        stage = "train"
    elif of_parent or job.step in ("generate", "judge"):
        stage = "generate"
    else:
        stage = "validate"
    return next((span.key for span in reversed(stages) if span.name == stage), ROOT)


def _job(job: Job, parent: str) -> Span:
    assert job.finished_at is not None
    attributes: Attributes = {
        "forethought.job.id": str(job.id),
        "forethought.job.kind": job.kind,
        "forethought.job.status": job.status,
        "forethought.job.shards_done": job.shards_done,
        "forethought.job.tokens": job.tokens,
    }
    if job.started_at is not None:
        waited = (job.started_at - job.created_at).total_seconds()
        attributes["forethought.job.queued_seconds"] = round(waited, 3)
    name = (job.step or job.kind).partition(":")[0]
    error = _code(job.status, job.error)
    return Span(_key(job.id), parent, name, job.created_at, job.finished_at, attributes, error)


def _workers(session: Session, jobs: Sequence[Job]) -> Iterator[Span]:
    """A job's shards by the process that did them: a span for each shard would be thousands."""
    rows = session.execute(
        select(
            Shard.job_id,
            Shard.worker,
            func.count(),
            func.sum(Shard.attempt),
            func.min(Shard.started_at),
            func.max(Shard.finished_at),
        )
        .where(
            Shard.job_id.in_([job.id for job in jobs]),
            Shard.worker.is_not(None),
            Shard.finished_at.is_not(None),
        )
        .group_by(Shard.job_id, Shard.worker)
        .order_by(func.min(Shard.started_at))
    )
    for job_id, worker, shards, attempts, start, end in rows:
        assert worker is not None
        assert start is not None
        assert end is not None
        attributes: Attributes = {
            "forethought.worker": worker,
            "forethought.shards": shards,
            "forethought.attempts": int(attempts),
        }
        key = f"{_key(job_id)}:{worker}"
        yield Span(key, _key(job_id), "shards", start, end, attributes)


def _key(job_id: uuid.UUID) -> str:
    return f"job:{job_id}"


def _code(status: Status, error: dict[str, object] | None) -> str | None:
    if status is Status.succeeded:
        return None
    return str((error or {}).get("code", status))
