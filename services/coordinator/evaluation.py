"""Validation scores of models, prompt by prompt, and their paired comparison."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from services.coordinator.scoring import interval
from shared.models import Completion, Evaluation, Judgment

Scores = Mapping[int, float]
"""Prompt id -> mean score over its samples."""


def scores(session: Session, run_id: uuid.UUID, model_id: uuid.UUID) -> Scores:
    """An output that does not parse scores 0: it has nothing for the judge to like."""
    evaluation = session.get_one(Evaluation, (run_id, model_id))
    judged = and_(
        Judgment.completion_id == Completion.id,
        Judgment.job_id == evaluation.judge_job_id,
    )
    rows = session.execute(
        select(Completion.prompt_id, func.avg(func.coalesce(Judgment.score, 0.0)))
        .outerjoin(Judgment, judged)
        .where(Completion.job_id == evaluation.generate_job_id)
        .group_by(Completion.prompt_id)
    )
    return {prompt_id: float(score) for prompt_id, score in rows}


def mean(values: Scores) -> float:
    return sum(values.values()) / len(values)


def compare(model: Scores, other: Scores) -> dict[str, Any]:
    """Mean difference on the prompts both answered, with its 95% interval."""
    prompts = sorted(model.keys() & other.keys())
    middle, low, high = interval([model[p] - other[p] for p in prompts])
    return {"mean": middle, "low": low, "high": high, "n": len(prompts)}


def best(candidates: Sequence[tuple[uuid.UUID, Scores]]) -> uuid.UUID:
    """The candidate with the highest mean; the earlier epoch on a tie."""
    return max(candidates, key=lambda candidate: mean(candidate[1]))[0]


def exists(session: Session, run_id: uuid.UUID, model_id: uuid.UUID) -> bool:
    return session.get(Evaluation, (run_id, model_id)) is not None
