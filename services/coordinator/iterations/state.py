"""Reads an iteration from its rows: by its id, or as the state that `next_step` decides on."""

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from services.coordinator.iterations.policy import JobView, State
from shared import log
from shared.db.tables import Evaluation, Iteration, Job, JobKind, Model, Status
from shared.errors import NotFound
from shared.registry.lineage import STEPS
from shared.schemas.requests import IterationRequest, Training
from shared.thinking.formats import ThoughtFormat

COMPARISON = "evaluate-against-parent"
"""The step of the judge job that sets the chosen checkpoint's answers beside the parent's."""


def job_id(iteration_id: uuid.UUID, step: str) -> uuid.UUID:
    """Derive a job's id from its step, so that a repeat after a crash finds the same job."""
    return uuid.uuid5(iteration_id, step)


def find(session: Session, iteration_id: uuid.UUID, *, lock: bool = False) -> Iteration:
    row = session.get(
        Iteration, iteration_id, with_for_update={"key_share": True} if lock else None
    )
    if row is None:
        raise NotFound(f"no iteration {iteration_id}", param="id")
    log.bind_here(iteration=str(iteration_id))
    return row


def config_of(iteration: Iteration) -> IterationRequest:
    return IterationRequest.model_validate(iteration.config)


def format_of(iteration: Iteration) -> ThoughtFormat:
    # Of the config this only: an earlier version may have taken what this one would refuse.
    return ThoughtFormat.model_validate(iteration.config["thought_format"])


def compares_parent(iteration: Iteration) -> bool:
    """True if comparing with the parent takes a job of its own.

    A judge that compares gives shares won against the seed's answers, which say nothing about the
    parent. Scores of any other judge can be compared directly."""
    of_seed = iteration.parent_model_id == iteration.seed_model_id
    return not of_seed and config_of(iteration).evaluating_judge.compares


def read_state(session: Session, iteration: Iteration) -> State:
    assert iteration.parent_model_id is not None
    # Jobs are read before their checkpoints. A worker may commit in between, and a training that
    # is seen to have succeeded must be seen with its checkpoints.
    to_resume = _jobs_to_resume(session, iteration)
    ids = {job_id(iteration.id, step): step for step in (*STEPS, COMPARISON)}
    steps = {ids[id_]: view for id_, view in _views(session, [*ids]).items()}
    candidates = [model.id for model in checkpoints(session, iteration)]
    if config_of(iteration).validation.checkpoints != "all":
        candidates = candidates[-1:]
    evaluations = session.scalars(
        select(Evaluation).where(
            Evaluation.run_id == iteration.run_id,
            Evaluation.model_id.in_({*candidates, iteration.parent_model_id}),
        )
    ).all()
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
        reported=iteration.report is not None,
        to_resume=to_resume,
    )


def _jobs_to_resume(session: Session, iteration: Iteration) -> list[uuid.UUID]:
    """Jobs that ended before the iteration's stage began, as only its resume leaves them, and a
    training whose settings the resume has replaced. Both times are by the database's clock."""
    jobs = session.scalars(
        select(Job).where(
            Job.iteration_id == iteration.id, own_step(), Job.status != Status.succeeded
        )
    )
    since = iteration.stage_started_at
    return [
        job.id
        for job in jobs
        if (since and job.finished_at and job.finished_at <= since)
        or has_old_settings(job, iteration)
    ]


def own_step() -> ColumnElement[bool]:
    """Jobs that are steps of an iteration. A user's own job that names the iteration is none."""
    return and_(Job.step.is_not(None), Job.kind != JobKind.prune)


def has_old_settings(job: Job, iteration: Iteration) -> bool:
    """True for a training that was submitted with other settings than the iteration has now."""
    if job.kind is not JobKind.train:
        return False
    return Training.model_validate(job.params["training"]) != config_of(iteration).training


def _views(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, JobView]:
    rows = session.execute(select(Job.id, Job.status, Job.error).where(Job.id.in_(ids)))
    return {row.id: JobView(row.status, row.error) for row in rows}


def checkpoints(session: Session, iteration: Iteration) -> Sequence[Model]:
    """Every checkpoint of the iteration's training, in the order of epochs."""
    return session.scalars(
        select(Model).where(Model.job_id == job_id(iteration.id, "train")).order_by(Model.epoch)
    ).all()
