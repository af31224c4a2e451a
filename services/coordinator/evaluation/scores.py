"""Validation scores of models, prompt by prompt, and their paired comparison."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from services.coordinator.evaluation.winrate import Sample, Samples
from services.coordinator.iterations.state import checkpoints
from services.coordinator.pairs.length_control import interval
from shared.db.tables import Completion, Evaluation, Iteration, Job, Judgment, Model
from shared.schemas.judges import judge_spec

Scores = Mapping[int, float]
"""Prompt id -> mean score over its samples."""


def scores(
    session: Session, run_id: uuid.UUID, model_id: uuid.UUID, floor: float | None = None
) -> Scores:
    """An output without a response has the worst score that there is: `floor`, or that of the run.
    A prompt whose responses the judge gave no score is left out."""
    found = samples(session, run_id, model_id)
    failed = any(sample.score is None for group in found.values() for sample in group)
    if floor is None:
        floor = worst(session, run_id) if failed else 0.0
    return {
        prompt_id: sum(floor if s.score is None else s.score for s in group) / len(group)
        for prompt_id, group in found.items()
    }


def checkpoint_scores(session: Session, iteration: Iteration) -> list[tuple[Model, Scores]]:
    """Those of the iteration's checkpoints that were evaluated, in the order of epochs."""
    run_id = iteration.run_id
    return [
        (checkpoint, scores(session, run_id, checkpoint.id))
        for checkpoint in checkpoints(session, iteration)
        if session.get(Evaluation, (run_id, checkpoint.id)) is not None
    ]


def samples(
    session: Session, run_id: uuid.UUID, model_id: uuid.UUID, judge_job_id: uuid.UUID | None = None
) -> Samples:
    """Each output's score, of its evaluation or of another judge job, and length. A response that
    the judge gave no score is left out."""
    evaluation = session.get_one(Evaluation, (run_id, model_id))
    judge_job_id = judge_job_id or evaluation.judge_job_id
    judged = and_(Judgment.completion_id == Completion.id, Judgment.job_id == judge_job_id)
    rows = session.execute(
        select(
            Completion.prompt_id,
            Completion.response_start.is_not(None).label("parsed"),
            Judgment.score,
            Completion.response_tokens,
        )
        .outerjoin(Judgment, judged)
        .where(Completion.job_id == evaluation.generate_job_id)
        .order_by(Completion.prompt_index, Completion.sample_index)
    )
    walkovers = _walkovers(session, judge_job_id)
    found: dict[int, list[Sample]] = {}
    for row in rows:
        assert row.prompt_id is not None
        score = row.score
        if walkovers is not None:
            score = _whole_share(row.parsed, score, walkovers.get(row.prompt_id, 0.0))
        if score is not None or not row.parsed:
            length = row.response_tokens if row.parsed else None
            found.setdefault(row.prompt_id, []).append(Sample(score, length))
    return found


def _walkovers(session: Session, judge_job_id: uuid.UUID) -> Mapping[int, float] | None:
    """Of a job that compares with another's responses: by prompt, the share of the other's outputs
    that have none. None for a judge of single responses."""
    against = session.get_one(Job, judge_job_id).params.get("against_generate_job_id")
    if against is None:
        return None
    none = case((Completion.response_start.is_(None), 1.0), else_=0.0)
    rows = session.execute(
        select(Completion.prompt_id, func.avg(none))
        .where(Completion.job_id == uuid.UUID(against))
        .group_by(Completion.prompt_id)
    )
    return {prompt_id: float(share) for prompt_id, share in rows}


def _whole_share(parsed: bool, share: float | None, walkovers: float) -> float | None:
    """The share won against all outputs of the other, from that against its responses: a response
    wins against none, and two outputs without one tie."""
    if not parsed:
        return walkovers / 2
    if walkovers == 1:
        return 1.0
    return None if share is None else share * (1 - walkovers) + walkovers


def worst(session: Session, *run_ids: uuid.UUID) -> float:
    """The lower end of the judge's scale. Where it has none, the worst that a response has got so
    far in runs with one judge: the same for all their models, and no better than any response."""
    query = select(Iteration).where(Iteration.run_id == run_ids[0])
    [iteration] = session.scalars(query.limit(1))
    row = session.get_one(Evaluation, (run_ids[0], iteration.seed_model_id))
    spec = judge_spec(session.get_one(Job, row.judge_job_id).params["judge"])
    if spec.worst is not None:
        return spec.worst
    judged = select(Evaluation.judge_job_id).where(Evaluation.run_id.in_(run_ids))
    lowest = session.scalar(select(func.min(Judgment.score)).where(Judgment.job_id.in_(judged)))
    return 0.0 if lowest is None else lowest  # without any score, all outputs are equal


def mean(values: Scores) -> float:
    return sum(values.values()) / len(values)


def compare(model: Scores, other: Scores) -> dict[str, Any]:
    """Mean difference on the prompts both answered, with its 95% interval."""
    prompts = sorted(model.keys() & other.keys())
    return with_interval([model[p] - other[p] for p in prompts])


def with_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean of one value a prompt with its 95% interval."""
    middle, low, high = interval(values)
    return {"mean": middle, "low": low, "high": high, "n": len(values)}


def best(candidates: Sequence[tuple[uuid.UUID, Scores]]) -> uuid.UUID:
    """The candidate with the highest mean over the prompts that all have a score of; the earlier
    epoch on a tie. One with less than half as many scores as another is out of the race."""
    most = max(len(scores) for _, scores in candidates)
    able = [(id_, scores) for id_, scores in candidates if len(scores) * 2 >= most]
    common = set.intersection(*(set(scores) for _, scores in able))

    def rank(candidate: tuple[uuid.UUID, Scores]) -> float:
        return mean({p: s for p, s in candidate[1].items() if p in common or not common})

    return max(able, key=rank)[0]
