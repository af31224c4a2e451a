"""The progress of an iteration's current stage, with its speed and the time it still needs."""

import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, undefer

from services.coordinator.iterations.state import own_step
from shared.base import ResponseModel
from shared.db.tables import Iteration, Job, JobKind, Shard, Status

TELLING_SHARE = 0.1
"""A speed measured on less of a stage would be far too low, for it misses unfinished work."""


class IterationProgress(ResponseModel):
    stage: str
    done: int
    total: int
    unit: Literal["shards", "steps"]
    tokens_per_second: float | None
    eta_seconds: float | None
    note: str | None
    """The work under way while nothing can be counted yet."""


def progress_of(
    session: Session, iterations: Sequence[Iteration]
) -> dict[uuid.UUID, IterationProgress]:
    """The progress of each iteration, read in one statement however many there are."""
    counts: dict[uuid.UUID, list[_Counts]] = defaultdict(list)
    at_work = [i.id for i in iterations if not i.status.terminal or i.stage == "train"]
    for counted in _counted(session, at_work) if at_work else ():
        assert counted.job.iteration_id is not None
        counts[counted.job.iteration_id].append(counted)
    return {i.id: _progress(i, counts[i.id]) for i in iterations}


def _progress(iteration: Iteration, counts: Sequence["_Counts"]) -> IterationProgress:
    if iteration.stage == "train":
        return _training(counts)
    counts = [c for c in counts if _in_stage(c.job, iteration)]
    jobs = [c.job for c in counts]
    seconds_each = dict(_seconds_each(jobs))
    made = sum(c.made * seconds_each[c.job] for c in counts)
    left = sum(c.left * seconds_each[c.job] for c in counts)
    tokens = sum(c.tokens for c in counts)
    seconds = _busy_seconds(jobs)
    sampled_seconds = _busy_seconds([j for j in jobs if j.kind is JobKind.generate])
    telling = made > TELLING_SHARE * (made + left)
    return IterationProgress(
        stage=iteration.stage,
        done=sum(c.done for c in counts),
        total=sum(c.total for c in counts),
        unit="shards",
        tokens_per_second=round(tokens / sampled_seconds, 1)
        if telling and sampled_seconds
        else None,
        eta_seconds=round(seconds / made * left, 1) if telling and left else None,
        note=None if seconds or not jobs else "waiting for a worker and its engine",
    )


class _Counts(NamedTuple):
    """Shards of a job. `made` and `left` count a running one in parts."""

    job: Job
    done: int
    total: int
    made: float
    """Since the job started last: shards done before a resume say nothing about its speed."""
    left: float
    tokens: float


def _counted(session: Session, iteration_ids: Sequence[uuid.UUID]) -> Iterator[_Counts]:
    running = Shard.status == Status.running
    fresh = Shard.finished_at >= Job.started_at
    rows = session.execute(
        select(
            Job,
            func.count().filter(Shard.status == Status.succeeded),
            func.count(),
            _sum(Shard.progress["share"].as_float(), running),
            func.count().filter(Shard.status == Status.succeeded, fresh),
            _sum(Shard.result["tokens"].as_float(), fresh)
            + _sum(Shard.progress["tokens"].as_float(), running),
        )
        .join(Shard, Shard.job_id == Job.id)
        .where(Job.iteration_id.in_(iteration_ids), own_step())
        .group_by(Job.id)
        .options(undefer(Job.latest_progress))
    )
    for job, done, total, share, fresh_done, tokens in rows:
        made, left = fresh_done + share, total - done - share
        yield _Counts(job, done, total, made, left, tokens)


def _in_stage(job: Job, iteration: Iteration) -> bool:
    """True for jobs of sampling with those that score the parent, or for those that score
    checkpoints with the one that compares the best of them with the parent."""
    step = job.step or ""
    sampling = step in ("generate", "judge") or step.endswith(f":{iteration.parent_model_id}")
    return job.kind is not JobKind.train and sampling == (iteration.stage == "generate")


def _sum(values: ColumnElement[float], of: ColumnElement[bool]) -> ColumnElement[float]:
    return func.coalesce(func.sum(values).filter(of), 0.0)


def _seconds_each(jobs: Sequence[Job]) -> Iterator[tuple[Job, float]]:
    """Each job with the seconds that one of its shards takes, as its finished shards show.

    Before any has finished, a generate job is taken to sample as fast as the others, and a judge to
    need no time.
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


def _busy_seconds(jobs: Sequence[Job]) -> float:
    """Seconds in which at least one of the jobs ran."""
    now = datetime.now(UTC)
    ran = sorted((j.started_at, j.finished_at or now) for j in jobs if j.started_at is not None)
    seconds, until = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in ran:
        seconds += max(0.0, (end - max(until, start)).total_seconds())
        until = max(until, end)
    return seconds


def _training(counts: Sequence[_Counts]) -> IterationProgress:
    reports = (c.job.latest_progress for c in counts if c.job.step == "train")
    shard = next(reports, None) or {}
    done, total = int(shard.get("step", 0)), int(shard.get("total_steps", 0))
    # By the last step: the work before the first one, such as the reference's pass, is done once.
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
