"""A job as a worker sees it: read once from the database, and handed on."""

import uuid
from dataclasses import dataclass

from sqlalchemy.orm import Session

from shared.db.tables import Job, JobKind, Json, Model
from shared.schemas.judges import Needs, judge_spec
from workers.models.weights import ModelWeights

NEEDS = {
    JobKind.generate: Needs.engine,
    JobKind.train: Needs.device,
    JobKind.register: Needs.nothing,
    JobKind.prune: Needs.nothing,
}
"""Resources that a stage holds while it runs; a judge's specification names its own."""


@dataclass(frozen=True)
class JobSpec:
    """The part of a job that does not change while it runs."""

    id: uuid.UUID
    kind: JobKind
    iteration_id: uuid.UUID | None
    params: Json
    needs: Needs
    weights: ModelWeights | None
    """The model that the job samples from, judges with or trains; None for a job without one."""

    def bound(self) -> dict[str, str | None]:
        """Fields of every log line that is written for the job."""
        iteration = str(self.iteration_id) if self.iteration_id else None
        return {"job": str(self.id), "iteration": iteration}


def load(session: Session, job_id: uuid.UUID) -> JobSpec | None:
    """The job's specification; None for a job that does not exist or has ended."""
    job = session.get(Job, job_id)
    if job is None or job.status.terminal:
        return None
    model_id = job.params.get("model")
    model = session.get(Model, uuid.UUID(model_id)) if model_id else None
    return JobSpec(
        id=job.id,
        kind=job.kind,
        iteration_id=job.iteration_id,
        params=job.params,
        needs=NEEDS.get(job.kind) or judge_spec(job.params["judge"]).needs,
        weights=None if model is None else ModelWeights.of(model),
    )
