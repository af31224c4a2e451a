"""Reading an iteration's state for `next_step` from the rows of its jobs and evaluations."""

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.coordinator.iterations.policy import JobView, State
from shared.db.tables import Evaluation, Iteration, Job, Model
from shared.registry.lineage import STEPS
from shared.schemas.requests import IterationRequest
from shared.thinking.formats import ThoughtFormat

COMPARISON = "evaluate-against-parent"
"""The step of the judge job that sets the chosen checkpoint's answers beside the parent's."""


def job_id(iteration_id: uuid.UUID, step: str) -> uuid.UUID:
    """The same for the same step, so that a repeat after a crash finds the same job."""
    return uuid.uuid5(iteration_id, step)


def config_of(iteration: Iteration) -> IterationRequest:
    return IterationRequest.model_validate(iteration.config)


def format_of(iteration: Iteration) -> ThoughtFormat:
    # Of the config this only: an earlier version may have taken what this one would refuse.
    return ThoughtFormat.model_validate(iteration.config["thought_format"])


def compares_parent(iteration: Iteration) -> bool:
    """Whether that takes a job of its own: scores of a judge that compares are shares won against
    the seed's answers, and those of another judge can be set side by side."""
    of_seed = iteration.parent_model_id == iteration.seed_model_id
    return not of_seed and config_of(iteration).evaluating_judge.compares


def read_state(session: Session, iteration: Iteration) -> State:
    assert iteration.parent_model_id is not None
    # Jobs before what they write: workers commit meanwhile, and a training that is seen to have
    # succeeded must not be one whose checkpoints were looked for too early.
    ids = {job_id(iteration.id, step): step for step in (*STEPS, COMPARISON)}
    steps = {ids[id_]: view for id_, view in _views(session, [*ids]).items()}
    candidates = [m.id for m in _candidates(session, iteration)]
    relevant = {*candidates, iteration.parent_model_id}
    evaluations = [e for e in _evaluations(session, iteration.run_id) if e.model_id in relevant]
    views = _views(session, [j for e in evaluations for j in (e.generate_job_id, e.judge_job_id)])
    return State(
        jobs={step: steps[step] for step in STEPS if step in steps},
        parent=iteration.parent_model_id,
        evaluations={
            e.model_id: [views[e.generate_job_id], views[e.judge_job_id]] for e in evaluations
        },
        pairing=iteration.pairing,
        candidates=candidates,
        compares_parent=compares_parent(iteration),
        comparison=steps.get(COMPARISON),
    )


def _views(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, JobView]:
    rows = session.execute(select(Job.id, Job.status, Job.error).where(Job.id.in_(ids)))
    return {row.id: JobView(row.status, row.error) for row in rows}


def checkpoints(session: Session, iteration: Iteration) -> Sequence[Model]:
    """Every checkpoint of the iteration's training, in the order of epochs."""
    return session.scalars(
        select(Model).where(Model.job_id == job_id(iteration.id, "train")).order_by(Model.epoch)
    ).all()


def _candidates(session: Session, iteration: Iteration) -> Sequence[Model]:
    found = checkpoints(session, iteration)
    return found if config_of(iteration).validation.checkpoints == "all" else found[-1:]


def _evaluations(session: Session, run_id: uuid.UUID) -> Sequence[Evaluation]:
    return session.scalars(select(Evaluation).where(Evaluation.run_id == run_id)).all()
