"""An iteration's manifest: a hash over all that went in and came out, the same on every machine.

Rows are named by what they are (split and position, sample, epoch), not by ids or times, so two
runs of the same iteration have the same manifest exactly when they did the same.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from services.coordinator.iterations.state import COMPARISON, checkpoints, find, job_id
from shared.base import ResponseModel
from shared.db.tables import (
    Completion,
    Evaluation,
    Iteration,
    IterationPrompt,
    Job,
    Judgment,
    Model,
    Pair,
    Prompt,
    Status,
)
from shared.errors import Conflict, Gone
from shared.web.session import SessionDep

router = APIRouter(tags=["iterations"])
CHUNK = 1000
NOT_HASHED = ("name", "dataset", "base_model", "baseline")
"""Of the config: what the first three name is hashed itself, the last one is another run."""


class Part(ResponseModel):
    rows: int
    sha256: str


class Manifest(ResponseModel):
    object: Literal["manifest"] = "manifest"
    iteration_id: uuid.UUID
    sha256: str
    """Hash over the hashes of all parts."""
    parts: dict[str, Part]


@router.get("/iterations/{iteration_id}/manifest")
def get_manifest(iteration_id: uuid.UUID, session: SessionDep) -> Manifest:
    """Hashes over config, prompts, completions, judgments, pairs and weights of an iteration."""
    iteration = find(session, iteration_id)
    if iteration.status is not Status.succeeded:
        raise Conflict(f"iteration {iteration_id} is {iteration.status}: it has no manifest yet")
    if iteration.pruned_at is not None:
        raise Gone(f"iteration {iteration_id} was pruned: rows that its manifest hashes are gone")
    return manifest(session, iteration)


def manifest(session: Session, iteration: Iteration) -> Manifest:
    parts = {
        "config": _part([{k: v for k, v in iteration.config.items() if k not in NOT_HASHED}]),
        "weights": _part(_weights(session, iteration)),
        "prompts": _part(_prompts(session, iteration)),
        "pairs": _part(_pairs(session, iteration)),
    }
    for label, generate_id, judge_id in _samplings(session, iteration):
        parts[f"completions/{label}"] = _part(_completions(session, generate_id))
        parts[f"judgments/{label}"] = _part(_judgments(session, judge_id))
    comparison = job_id(iteration.id, COMPARISON)
    if session.get(Job, comparison) is not None:
        parts["judgments/validation/against-parent"] = _part(_judgments(session, comparison))
    whole = _part(sorted((name, part.sha256) for name, part in parts.items()))
    return Manifest(iteration_id=iteration.id, sha256=whole.sha256, parts=parts)


def _part(rows: Iterable[Any]) -> Part:
    digest, count = hashlib.sha256(), 0
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        count += 1
    return Part(rows=count, sha256=digest.hexdigest())


def _weights(session: Session, iteration: Iteration) -> Iterator[Any]:
    """Those that it began with, each epoch's, and which epoch was chosen."""
    yield session.get_one(Model, iteration.parent_model_id).weights_sha256
    for checkpoint in checkpoints(session, iteration):
        chosen = checkpoint.id == iteration.result_model_id
        yield checkpoint.epoch, checkpoint.weights_sha256, chosen


def _prompts(session: Session, iteration: Iteration) -> Iterator[Any]:
    at = IterationPrompt
    query = (
        select(at.split, at.position, Prompt.text, Prompt.checks)
        .join(Prompt, Prompt.id == at.prompt_id)
        .where(at.iteration_id == iteration.id)
        .order_by(at.split, at.position)
    )
    return _rows(session, query)


def _samplings(
    session: Session, iteration: Iteration
) -> Iterator[tuple[str, uuid.UUID, uuid.UUID]]:
    """Label, generate job and judge job: of training, then of each model that was evaluated."""
    yield "train", job_id(iteration.id, "generate"), job_id(iteration.id, "judge")
    labels = {m.id: f"epoch-{m.epoch}" for m in checkpoints(session, iteration)}
    assert iteration.parent_model_id is not None
    labels |= {iteration.seed_model_id: "seed", iteration.parent_model_id: "parent"}
    evaluations = session.scalars(
        select(Evaluation).where(
            Evaluation.run_id == iteration.run_id, Evaluation.model_id.in_(labels)
        )
    )
    for evaluation in evaluations:
        label = labels[evaluation.model_id]
        yield f"validation/{label}", evaluation.generate_job_id, evaluation.judge_job_id


def _completions(session: Session, job: uuid.UUID) -> Iterator[Any]:
    columns = [
        column
        for name, column in Completion.__table__.columns.items()
        # Without token ids, a manifest of rows that have none stays what it was.
        if name not in ("id", "job_id", "shard_id", "prompt_id", "output_ids")
    ]
    query = (
        select(*columns)
        .where(Completion.job_id == job)
        .order_by(Completion.prompt_index, Completion.sample_index)
    )
    return _rows(session, query)


def _judgments(session: Session, job: uuid.UUID) -> Iterator[Any]:
    query = (
        select(
            Completion.prompt_index,
            Completion.sample_index,
            Judgment.score,
            Judgment.judge,
            Judgment.details,
        )
        .join(Completion, Completion.id == Judgment.completion_id)
        .where(Judgment.job_id == job)
        .order_by(Completion.prompt_index, Completion.sample_index)
    )
    return _rows(session, query)


def _pairs(session: Session, iteration: Iteration) -> Iterator[Any]:
    chosen, rejected = aliased(Completion), aliased(Completion)
    query = (
        select(
            chosen.prompt_index,
            chosen.sample_index,
            rejected.sample_index,
            Pair.chosen_score,
            Pair.rejected_score,
            Pair.margin,
        )
        .join(chosen, chosen.id == Pair.chosen_id)
        .join(rejected, rejected.id == Pair.rejected_id)
        .where(Pair.iteration_id == iteration.id)
        .order_by(chosen.prompt_index)
    )
    return _rows(session, query)


def _rows(session: Session, query: Any) -> Iterator[Any]:
    for row in session.execute(query.execution_options(yield_per=CHUNK)):
        yield tuple(row)
