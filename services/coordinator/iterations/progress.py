"""How far an iteration's current stage is, with its speed and the time it still needs."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import COMPARISON, job_id
from shared.base import ResponseModel
from shared.db.tables import Evaluation, Iteration, Job, JobKind, Shard, Status

TELLING_SHARE = 0.1
"""A speed from less of a stage than this would be far too low: what is under way is not counted."""


class IterationProgress(ResponseModel):
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
    jobs = [] if iteration.status.terminal else _stage_jobs(session, iteration)
    counts = [(_counted(session, job), each) for job, each in _seconds_each(jobs)]
    made = sum(of.made * each for of, each in counts)
    left = sum(of.left * each for of, each in counts)
    sampling = [j for j in jobs if j.kind is JobKind.generate]
    tokens = sum(of.tokens for of, _ in counts)
    seconds, sampled_seconds = _busy_seconds(jobs), _busy_seconds(sampling)
    telling = made > TELLING_SHARE * (made + left)
    return IterationProgress(
        stage=iteration.stage,
        done=sum(of.done for of, _ in counts),
        total=sum(of.total for of, _ in counts),
        unit="shards",
        tokens_per_second=round(tokens / sampled_seconds, 1)
        if telling and sampled_seconds
        else None,
        eta_seconds=round(seconds / made * left, 1) if telling and left else None,
        note=None if seconds or not jobs else "waiting for a worker and its engine",
    )


class _Counts(NamedTuple):
    """Shards of a job. `made` and `left` count one that is under way in parts."""

    done: int
    total: int
    made: float
    """Since the job started last: what was there before a resume says nothing of its speed."""
    left: float
    tokens: float


def _counted(session: Session, job: Job) -> _Counts:
    running = Shard.status == Status.running
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
        .where(Job.id == job.id)
    ).one()
    return _Counts(done, total, fresh_done + share, total - done - share, tokens)


def _sum(values: ColumnElement[float], of: ColumnElement[bool]) -> ColumnElement[float]:
    return func.coalesce(func.sum(values).filter(of), 0.0)


def _seconds_each(jobs: Sequence[Job]) -> Iterator[tuple[Job, float]]:
    """Each job with what a shard of it takes, for jobs weigh by their work.

    As its shards that are done have shown. Before that, a generate job samples as fast as the
    others, and a judge takes no time.
    """
    known = [j for j in jobs if j.shards_done]
    sampled = [j for j in known if j.kind is JobKind.generate]
    samples = sum(j.shards_done * _samples(j) for j in sampled)
    each = sum(j.shard_seconds for j in sampled) / samples if samples else 1.0
    for job in jobs:
        if job.shards_done:
            yield job, job.shard_seconds / job.shards_done
        else:
            yield job, each * _samples(job) if job.kind is JobKind.generate else 0.0


def _samples(job: Job) -> int:
    return int(job.params["sampling"]["samples"])


def _stage_jobs(session: Session, iteration: Iteration) -> Sequence[Job]:
    """Jobs of sampling with those that score the parent, or those that score checkpoints with the
    one that compares the best of them with the parent."""
    evaluations = session.scalars(
        select(Evaluation).where(Evaluation.iteration_id == iteration.id)
    ).all()
    in_sampling = iteration.stage == "generate"
    steps = ("generate", "judge") if in_sampling else (COMPARISON,)
    ids = [job_id(iteration.id, step) for step in steps]
    for e in evaluations:
        if (e.model_id == iteration.parent_model_id) == in_sampling:
            ids += [e.generate_job_id, e.judge_job_id]
    return session.scalars(select(Job).where(Job.id.in_(ids))).all()


def _busy_seconds(jobs: Sequence[Job]) -> float:
    """Seconds in which at least one of them ran."""
    now = datetime.now(UTC)
    ran = sorted((j.started_at, j.finished_at or now) for j in jobs if j.started_at is not None)
    seconds, until = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in ran:
        seconds += max(0.0, (end - max(until, start)).total_seconds())
        until = max(until, end)
    return seconds


def _training(session: Session, iteration: Iteration) -> IterationProgress:
    job = session.get(Job, job_id(iteration.id, "train"))
    shard = (job.latest_progress if job else None) or {}
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
