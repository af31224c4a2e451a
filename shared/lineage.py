"""Which data, judge, settings and versions made the checkpoints of an iteration."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.models import Dataset, Iteration, Job, Json

STEPS = ("generate", "judge", "train")


def lineage_of(session: Session, iteration: Iteration) -> Json:
    """Its prompts are the iteration's own rows."""
    versions: dict[str, str] = {}
    results = select(Job.result).where(Job.iteration_id == iteration.id, Job.step.in_(STEPS))
    for result in session.scalars(results.order_by(Job.created_at)):
        versions |= (result or {}).get("versions", {})
    dataset = session.get_one(Dataset, iteration.dataset_id)
    return {
        "iteration_id": str(iteration.id),
        "run_id": str(iteration.run_id),
        "number": iteration.number,
        "seed_model_id": str(iteration.seed_model_id),
        "dataset_id": str(dataset.id),
        "dataset": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
        "config": iteration.config,
        "versions": versions,
    }
