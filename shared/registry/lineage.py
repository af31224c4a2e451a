"""Lineage: the data, judge, settings and versions that made an iteration's checkpoints."""

import uuid

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from shared.db.tables import Dataset, Iteration, Job, Json

STEPS = ("generate", "judge", "train")


def iteration_of(session: Session, job_id: uuid.UUID | None) -> Iteration | None:
    """Find the iteration whose pairs a training has had; None if they came with its request."""
    query = select(Iteration).join(Job, Job.iteration_id == Iteration.id).where(Job.id == job_id)
    return session.scalar(query)


def checkpoint_lineage(session: Session, iteration: Iteration | None, training: Json) -> Json:
    """Join what the training itself reports of a checkpoint with all that led to the training."""
    led = lineage_of(session, iteration) if iteration else {}
    versions = led.get("versions", {}) | training.get("versions", {})
    return led | training | {"versions": versions}


def lineage_of(session: Session, iteration: Iteration) -> Json:
    """Its prompts are the iteration's own rows."""
    dataset = session.get_one(Dataset, iteration.dataset_id)
    return {
        "iteration_id": str(iteration.id),
        "run_id": str(iteration.run_id),
        "number": iteration.number,
        "seed_model_id": str(iteration.seed_model_id),
        "dataset_id": str(dataset.id),
        "dataset": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
        "config": iteration.config,
        "versions": versions_of(session, iteration, Job.step.in_(STEPS)),
    }


def versions_of(session: Session, iteration: Iteration, steps: ColumnElement[bool]) -> Json:
    """Collect the versions of libraries that these jobs of the iteration ran with."""
    results = select(Job.result).where(Job.iteration_id == iteration.id, steps)
    found: Json = {}
    for result in session.scalars(results.order_by(Job.created_at)):
        found |= (result or {}).get("versions", {})
    return found
