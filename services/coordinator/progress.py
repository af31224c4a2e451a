"""How far an iteration's current stage is, with its speed and the time it still needs."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from services.coordinator.state import job_id
from shared.job_routes import latest_progress
from shared.models import Evaluation, Iteration, Job, JobKind, Shard, Status
from shared.strict import Read

TELLING_SHARE = 0.1
"""A speed from less of a stage than this would be far too low: what is under way is not counted."""


class IterationProgress(Read):
    stage: str
    done: int
    total: int
    unit: Literal["shards", "steps"]
    tokens_per_second: float | None
    eta_seconds: float | None
    note: str | None
    """What goes on while nothing can be counted yet."""


def progress_of(session: Session, iteration: Iteration) -> IterationProgress:
    if iteration.stage == "train":
        return _training(session, iteration)
    kinds = (JobKind.generate, JobKind.judge)
    jobs = [] if iteration.status.terminal else _stage_jobs(session, iteration)
    running = Shard.status == Status.running
    # After a resume a job has started anew; what was there before says nothing of its speed.
    fresh = Shard.finished_at >= Job.started_at
    done, total, share, fresh_done, tokens = session.execute(
        select(
            func.count().filter(Shard.status == Status.succeeded),
            func.count(),
            _sum(Shard.progress["share"].as_float(), running),
            func.count().filter(Shard.status == Status.succeeded, fresh),
            _sum(Shard.result["tokens"].as_float(), fresh)
            + _sum(Shard.progress["tokens"].as_float(), running),
        )
        .join(Job, Job.id == Shard.job_id)
        .where(Shard.job_id.in_([j.id for j in jobs]), Job.kind.in_(kinds))
    ).one()
    seconds = _busy_seconds(jobs)
    made, left = fresh_done + share, total - done - share
    telling = made > TELLING_SHARE * (made + left)
    return IterationProgress(
        stage=iteration.stage,
        done=done,
        total=total,
        unit="shards",
        tokens_per_second=round(tokens / seconds, 1) if telling and seconds else None,
        eta_seconds=round(seconds / made * left, 1) if telling and seconds else None,
        note=None if seconds or not jobs else "waiting for a worker and its engine",
    )


def _sum(values: ColumnElement[float], of: ColumnElement[bool]) -> ColumnElement[float]:
    return func.coalesce(func.sum(values).filter(of), 0.0)


def _stage_jobs(session: Session, iteration: Iteration) -> Sequence[Job]:
    """Jobs of sampling with those that score the parent, or those that score checkpoints."""
    evaluations = session.scalars(
        select(Evaluation).where(Evaluation.iteration_id == iteration.id)
    ).all()
    in_sampling = iteration.stage == "generate"
    ids = [job_id(iteration.id, s) for s in ("generate", "judge")] if in_sampling else []
    for e in evaluations:
        if (e.model_id == iteration.parent_model_id) == in_sampling:
            ids += [e.generate_job_id, e.judge_job_id]
    return session.scalars(select(Job).where(Job.id.in_(ids))).all()


def _busy_seconds(jobs: Sequence[Job]) -> float:
    """Seconds in which generate jobs ran; those of one stage may follow one another."""
    return sum(
        ((j.finished_at or datetime.now(UTC)) - j.started_at).total_seconds()
        for j in jobs
        if j.started_at is not None and j.kind is JobKind.generate
    )


def _training(session: Session, iteration: Iteration) -> IterationProgress:
    job = session.get(Job, job_id(iteration.id, "train"))
    shard = (latest_progress(session, job.id) if job else None) or {}
    done, total = int(shard.get("step", 0)), int(shard.get("total_steps", 0))
    # By the last step: what came before the first, as the reference's pass, is not repeated.
    eta = round(shard["seconds"] * (total - done), 1) if "seconds" in shard else None
    return IterationProgress(
        stage="train",
        done=done,
        total=total,
        unit="steps",
        tokens_per_second=shard.get("tokens_per_second"),
        eta_seconds=eta,
        note=None if done else "loading the model, computing the reference",
    )
