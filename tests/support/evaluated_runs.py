"""Iterations up to the choice of a checkpoint, with outputs and scores that a test sets."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import COMPARISON, job_id
from services.coordinator.pairs.write import choose_pairs, insert_pairs
from shared.db.tables import (
    Completion,
    Dataset,
    Evaluation,
    Iteration,
    IterationPrompt,
    Job,
    JobKind,
    Judgment,
    Model,
    Prompt,
    Shard,
    Split,
    Status,
)
from shared.schemas.judges import judge_spec
from shared.schemas.requests import IterationRequest
from shared.thinking.formats import SPECIFIC
from tests.support import factories


@dataclass(frozen=True)
class Out:
    score: float | None
    length: int = 10
    parsed: bool = True
    thought: int = 5
    truncated: bool = False
    reason: str | None = None
    text: str = ""


BROKEN = Out(None, 0, parsed=False, thought=40, truncated=True)
Outs = Sequence[Sequence[Out]]
"""By prompt, in the order of the dataset's split."""


def running(session: Session, dataset: Dataset, seed: Model, **given: Any) -> Iteration:
    """An iteration that has drawn all prompts of a dataset. Of what is given `config` changes its
    request, and the rest its columns."""
    body = {"name": "thinker", "base_model": str(seed.id), "dataset": dataset.name}
    body |= {"thought_format": SPECIFIC.model_dump()} | given.pop("config", {})
    values: dict[str, Any] = {
        "id": uuid.uuid4(),
        "run_id": uuid.uuid4(),
        "number": 1,
        "status": Status.running,
        "parent_model_id": seed.id,
    }
    row = Iteration(
        config=IterationRequest.model_validate(body).model_dump(mode="json"),
        dataset_id=dataset.id,
        seed_model_id=seed.id,
        **(values | given),
    )
    session.add(row)
    session.flush()
    for split in Split:
        session.add_all(
            IterationPrompt(iteration_id=row.id, prompt_id=p.id, split=split, position=i)
            for i, p in enumerate(prompts(session, dataset.id, split))
        )
    session.flush()
    return row


def prompts(session: Session, dataset_id: uuid.UUID, split: Split) -> Sequence[Prompt]:
    query = select(Prompt).where(Prompt.dataset_id == dataset_id, Prompt.split == split)
    return session.scalars(query.order_by(Prompt.position)).all()


def trained(session: Session, iteration: Iteration, outs: Outs) -> Model:
    """Sampled, judged, paired and trained on for an epoch; returns the checkpoint."""
    sampled(session, iteration, outs)
    kept = paired(session, iteration)
    job = _job(session, iteration, JobKind.train, "train", pairs=kept)
    return factories.model(
        session,
        name=None,
        version=None,
        parent_id=iteration.parent_model_id,
        job_id=job.id,
        epoch=1,
    )


def paired(session: Session, iteration: Iteration) -> object:
    """Its pairs are chosen; returns how many there are."""
    choices, iteration.pairing = choose_pairs(session, iteration)
    insert_pairs(session, iteration.id, choices)
    return iteration.pairing["kept"]


def sampled(session: Session, iteration: Iteration, outs: Outs) -> None:
    """Its outputs are there and judged."""
    _sampled(session, iteration, Split.train, ("generate", "judge"), outs)


def evaluated(session: Session, iteration: Iteration, model_id: uuid.UUID, outs: Outs) -> None:
    steps = (f"evaluate-generate:{model_id}", f"evaluate-judge:{model_id}")
    generate, judge = _sampled(session, iteration, Split.validation, steps, outs)
    config = iteration.config
    spec = judge_spec(config["validation"]["judge"] or config["judge"])
    if spec.compares:
        seed = job_id(iteration.id, f"evaluate-generate:{iteration.seed_model_id}")
        against = {"against_generate_job_id": str(seed)}
        job = session.get_one(Job, judge)
        job.params = job.params | against
    session.add(
        Evaluation(
            run_id=iteration.run_id,
            model_id=model_id,
            iteration_id=iteration.id,
            generate_job_id=generate,
            judge_job_id=judge,
        )
    )
    session.flush()


def compared(
    session: Session, iteration: Iteration, model_id: uuid.UUID, shares: Sequence[float | None]
) -> None:
    """A model's responses were judged against its parent's."""
    ours, theirs = (
        str(session.get_one(Evaluation, (iteration.run_id, id_)).generate_job_id)
        for id_ in (model_id, iteration.parent_model_id)
    )
    judge = _job(session, iteration, JobKind.judge, COMPARISON)
    judge.params = {"generate_job_id": ours, "against_generate_job_id": theirs}
    shard = Shard(job_id=judge.id, index=0, status=Status.succeeded, payload={})
    session.add(shard)
    session.flush()
    won(session, judge, shard.id, shares)


def won(session: Session, judge: Job, shard_id: int, shares: Sequence[float | None]) -> None:
    """The share that the first output for each prompt won, None where there was nothing to
    compare."""
    first = select(Completion).where(
        Completion.job_id == uuid.UUID(judge.params["generate_job_id"]),
        Completion.sample_index == 0,
    )
    rows = session.scalars(first.order_by(Completion.prompt_index))
    session.add_all(
        Judgment(
            job_id=judge.id,
            shard_id=shard_id,
            completion_id=row.id,
            score=share,
            judge="pairwise/1",
            details={},
        )
        for row, share in zip(rows, shares, strict=True)
        if share is not None
    )
    session.flush()


def succeeded(
    session: Session, iteration: Iteration, chosen: Model, report: dict[str, Any]
) -> None:
    chosen.name, chosen.version = iteration.config["name"], iteration.number
    iteration.status, iteration.result_model_id = Status.succeeded, chosen.id
    iteration.report = report
    session.flush()


def _sampled(
    session: Session, iteration: Iteration, split: Split, steps: tuple[str, str], outs: Outs
) -> tuple[uuid.UUID, uuid.UUID]:
    generate = _job(session, iteration, JobKind.generate, steps[0])
    unjudged = sum(o.parsed and o.score is None for given in outs for o in given)
    counts = {"unjudged": unjudged, "calls": sum(len(given) for given in outs)}
    judge = _job(session, iteration, JobKind.judge, steps[1], **counts)
    shards = [
        Shard(job_id=j.id, index=0, status=Status.succeeded, payload={}) for j in (generate, judge)
    ]
    session.add_all(shards)
    session.flush()
    marker = f"hm {SPECIFIC.response_marker} "
    for index, prompt in enumerate(prompts(session, iteration.dataset_id, split)[: len(outs)]):
        for sample, out in enumerate(outs[index]):
            row = Completion(
                job_id=generate.id,
                shard_id=shards[0].id,
                prompt_id=prompt.id,
                prompt_index=index,
                sample_index=sample,
                output=f"{marker}{out.text or f'{index}/{sample}'}",
                response_start=len(marker) if out.parsed else None,
                prompt_tokens=1,
                thought_tokens=out.thought,
                response_tokens=out.length,
                truncated=out.truncated,
                forced=False,
                seed=sample,
            )
            session.add(row)
            session.flush()
            if out.parsed:
                session.add(
                    Judgment(
                        job_id=judge.id,
                        shard_id=shards[1].id,
                        completion_id=row.id,
                        score=out.score,
                        judge="verifier/1",
                        details={"reason": out.reason} if out.reason else {},
                    )
                )
    session.flush()
    return generate.id, judge.id


def _job(session: Session, iteration: Iteration, kind: JobKind, step: str, **result: Any) -> Job:
    job = Job(
        id=job_id(iteration.id, step),
        kind=kind,
        status=Status.succeeded,
        params={
            "model": str(iteration.parent_model_id),
            **{field: iteration.config[field] for field in ("judge", "training")},
        },
        iteration_id=iteration.id,
        step=step,
        result=result,
    )
    session.add(job)
    session.flush()
    return job
