"""Runs that have ended, as the platform leaves them: rows of every stage, and folders."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import job_id
from shared.db.tables import (
    Completion,
    Dataset,
    Iteration,
    Job,
    JobKind,
    Judgment,
    Model,
    Pair,
    Prompt,
    SampledPrompt,
    Shard,
    Status,
)
from shared.registry.models import training_folder
from shared.thinking.formats import SPECIFIC
from tests.support import factories

SAMPLES = {"generate": 4, "evaluate-generate:x": 2}
WEIGHTS = b"x" * 1000


def past_run(
    session: Session, *outcomes: Status, days: float = 30, **given: Any
) -> list[uuid.UUID]:
    """Ids of a run's iterations, which have ended so many days ago. Each has sampled four outputs
    for training, of which two are a pair, and two for validation, and has trained two epochs, of
    which the second became a model, if it succeeded."""
    if (dataset := session.scalar(select(Dataset))) is None:
        dataset = factories.dataset(session, train=1, validation=0)
    parent = given.pop("seed", None) or session.scalars(select(Model)).first()
    assert parent is not None
    run_id, seed, ids = uuid.uuid4(), parent, []
    ended = datetime.now(UTC) - timedelta(days=days)
    for number, status in enumerate(outcomes, 1):
        iteration = Iteration(
            id=uuid.uuid4(),
            run_id=run_id,
            number=number,
            status=status,
            config={"thought_format": SPECIFIC.model_dump()},
            dataset_id=dataset.id,
            seed_model_id=seed.id,
            parent_model_id=parent.id,
            report={"completions": 4},
            created_at=ended - timedelta(hours=1),
            finished_at=ended if status.terminal else None,
            **given,
        )
        session.add(iteration)
        session.flush()
        _sampled(session, iteration)
        trained = _trained(session, iteration, parent)
        parent = trained if status is Status.succeeded else parent
        ids.append(iteration.id)
    return ids


def _job(session: Session, iteration: Iteration, kind: JobKind, step: str) -> tuple[Job, Shard]:
    job = Job(
        id=job_id(iteration.id, step),
        kind=kind,
        status=Status.succeeded,
        params={"model": str(iteration.parent_model_id)},
        iteration_id=iteration.id,
        step=step,
    )
    session.add(job)
    session.flush()
    shard = Shard(job_id=job.id, index=0, status=Status.succeeded, payload={})
    session.add(shard)
    session.flush()
    return job, shard


def _sampled(session: Session, iteration: Iteration) -> None:
    prompt = session.scalars(select(Prompt)).first()
    assert prompt is not None
    for step, samples in SAMPLES.items():
        job, shard = _job(session, iteration, JobKind.generate, step)
        judge, judge_shard = _job(session, iteration, JobKind.judge, f"judge of {step}")
        rows = [
            Completion(
                job_id=job.id,
                shard_id=shard.id,
                prompt_id=prompt.id,
                prompt_index=0,
                sample_index=n,
                output=f"hm <R> {n}",
                response_start=7,
                prompt_tokens=1,
                thought_tokens=1,
                response_tokens=1,
                truncated=False,
                forced=False,
                seed=n,
            )
            for n in range(samples)
        ]
        session.add_all(rows)
        session.add(SampledPrompt(job_id=job.id, prompt_index=0, ids=[1]))
        session.flush()
        session.add_all(
            Judgment(
                job_id=judge.id,
                shard_id=judge_shard.id,
                completion_id=row.id,
                score=row.sample_index,
                judge="verifier/1",
                details={},
            )
            for row in rows
        )
        if step == "generate":
            session.add(
                Pair(
                    iteration_id=iteration.id,
                    prompt_id=prompt.id,
                    chosen_id=rows[-1].id,
                    rejected_id=rows[0].id,
                    chosen_score=3.0,
                )
            )
    session.flush()


def _trained(session: Session, iteration: Iteration, parent: Model) -> Model:
    job, _ = _job(session, iteration, JobKind.train, "train")
    attempt = training_folder(job.id) / "attempt-1"
    (attempt / "trainer" / "checkpoint-2").mkdir(parents=True)
    (attempt / "trainer" / "checkpoint-2" / "optimizer.pt").write_bytes(WEIGHTS)
    (attempt / "pairs.jsonl").write_text("{}")
    (attempt / "metrics.jsonl").write_text("{}")
    epochs = []
    for epoch in (1, 2):
        folder = attempt / f"epoch-{epoch}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        epochs.append(
            factories.model(
                session,
                id=uuid.uuid5(job.id, f"epoch-{epoch}"),
                name=None,
                version=None,
                path=str(folder.resolve()),
                size_bytes=len(WEIGHTS),
                parent_id=parent.id,
                job_id=job.id,
                epoch=epoch,
            )
        )
    if iteration.status is Status.succeeded:
        latest = session.scalar(select(func.max(Model.version)).where(Model.name == "thinker"))
        epochs[1].name, epochs[1].version = "thinker", (latest or 0) + 1
        iteration.result_model_id = epochs[1].id
    session.flush()
    return epochs[1]


def checkpoint(iteration_id: uuid.UUID, epoch: int) -> uuid.UUID:
    return uuid.uuid5(job_id(iteration_id, "train"), f"epoch-{epoch}")


def files(iteration_id: uuid.UUID) -> set[str]:
    """What is left of its training on the disk."""
    root = training_folder(job_id(iteration_id, "train"))
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def samples(session: Session, iteration_id: uuid.UUID, step: str = "generate") -> list[int]:
    query = select(Completion.sample_index).where(Completion.job_id == job_id(iteration_id, step))
    return sorted(session.scalars(query))
