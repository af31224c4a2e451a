"""A model's validation outputs as numbers: a score and a length each, never a text."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from shared.db.tables import Completion, Evaluation, Job, Judgment

CHUNK = 2000
"""Rows read at once."""


@dataclass(frozen=True, slots=True)
class ScoredOutput:
    score: float | None
    """None without a response: it loses against any response and ties with another such output."""
    length: int | None
    """Tokens of the response; None without one."""


ScoredOutputs = Mapping[int, Sequence[ScoredOutput]]
"""Prompt id -> the model's outputs, one or more."""
OutputsByModel = Mapping[uuid.UUID, ScoredOutputs]
"""Model id -> its outputs."""


def load(session: Session, run_id: uuid.UUID, model_ids: Iterable[uuid.UUID]) -> OutputsByModel:
    """By model, as the run's evaluations scored them. A model that was not evaluated is absent."""
    evaluations = select(Evaluation).where(
        Evaluation.run_id == run_id, Evaluation.model_id.in_(set(model_ids))
    )
    return {
        evaluation.model_id: judged_outputs(
            session, evaluation.generate_job_id, evaluation.judge_job_id
        )
        for evaluation in session.scalars(evaluations).all()
    }


def judged_outputs(
    session: Session, generate_job_id: uuid.UUID, judge_job_id: uuid.UUID
) -> ScoredOutputs:
    """The outputs of one job with the scores of another. A response without a score is left out."""
    judged = and_(Judgment.completion_id == Completion.id, Judgment.job_id == judge_job_id)
    rows = session.execute(
        select(
            Completion.prompt_id,
            Completion.response_start.is_not(None).label("parsed"),
            Judgment.score,
            Completion.response_tokens,
        )
        .outerjoin(Judgment, judged)
        .where(Completion.job_id == generate_job_id)
        .order_by(Completion.prompt_index, Completion.sample_index)
        .execution_options(yield_per=CHUNK)
    )
    walkovers = _walkovers(session, judge_job_id)
    outputs: dict[int, list[ScoredOutput]] = {}
    for row in rows:
        score = row.score
        if walkovers is not None:
            score = _share_of_all(row.parsed, score, walkovers.get(row.prompt_id, 0.0))
        if score is not None or not row.parsed:
            length = row.response_tokens if row.parsed else None
            outputs.setdefault(row.prompt_id, []).append(ScoredOutput(score, length))
    return outputs


def _walkovers(session: Session, judge_job_id: uuid.UUID) -> Mapping[int, float] | None:
    """The share, by prompt, of the opponent's outputs that have no response.

    None for a judge of single responses, which has no opponent.
    """
    opponent = session.get_one(Job, judge_job_id).params.get("against_generate_job_id")
    if opponent is None:
        return None
    missing = case((Completion.response_start.is_(None), 1.0), else_=0.0)
    rows = session.execute(
        select(Completion.prompt_id, func.avg(missing))
        .where(Completion.job_id == uuid.UUID(opponent))
        .group_by(Completion.prompt_id)
    )
    return {prompt_id: float(share) for prompt_id, share in rows}


def _share_of_all(parsed: bool, share: float | None, walkovers: float) -> float | None:
    """The share won against all outputs of the opponent, from the share against its responses.

    A response wins against an output without one, and two outputs without one tie.
    """
    if not parsed:
        return walkovers / 2
    if walkovers == 1:
        return 1.0
    return None if share is None else share * (1 - walkovers) + walkovers
