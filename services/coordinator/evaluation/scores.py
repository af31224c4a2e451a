"""Validation scores of models, prompt by prompt, and their paired comparison."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.coordinator.evaluation.scored_outputs import OutputsByModel, ScoredOutputs, load
from services.coordinator.evaluation.stats import mean_interval
from services.coordinator.iterations.state import checkpoints, config_of
from shared.db.tables import Evaluation, Iteration, Judgment, Model
from shared.schemas.judges import AnySpec

Scores = Mapping[int, float]
"""Prompt id -> mean score over the model's outputs."""


def scores(outputs: ScoredOutputs, floor: float) -> Scores:
    """An output without a response counts as `floor`, the worst score.

    A prompt is left out if the judge gave none of its responses a score.
    """
    return {
        prompt_id: fmean(floor if o.score is None else o.score for o in group)
        for prompt_id, group in outputs.items()
    }


def worst(session: Session, judge: AnySpec, *run_ids: uuid.UUID) -> float:
    """The lower end of the judge's scale.

    If the scale is unbounded: the lowest score any response has received in these runs, which
    share the judge. So all their models have one floor, and no response scores below it.
    """
    if judge.worst is not None:
        return judge.worst
    jobs = select(Evaluation.judge_job_id).where(Evaluation.run_id.in_(run_ids))
    lowest = session.scalar(select(func.min(Judgment.score)).where(Judgment.job_id.in_(jobs)))
    return 0.0 if lowest is None else lowest  # without any score, all outputs are equal


def checkpoint_scores(
    session: Session,
    iteration: Iteration,
    loaded: OutputsByModel = MappingProxyType({}),
) -> Iterator[tuple[Model, Scores]]:
    """The scores of the iteration's evaluated checkpoints, in the order of epochs.

    One checkpoint is read at a time, those in `loaded` not at all.
    """
    floor = worst(session, config_of(iteration).evaluating_judge, iteration.run_id)
    for checkpoint in checkpoints(session, iteration):
        id_ = checkpoint.id
        known = loaded if id_ in loaded else load(session, iteration.run_id, [id_])
        if id_ in known:
            yield checkpoint, scores(known[id_], floor)


def compare(model: Scores, other: Scores) -> dict[str, Any]:
    """The mean difference on the prompts both have a score of, with its 95% interval."""
    prompts = sorted(model.keys() & other.keys())
    return mean_interval([model[p] - other[p] for p in prompts]).as_json()


def best(candidates: Sequence[tuple[uuid.UUID, Scores]]) -> uuid.UUID:
    """The candidate with the highest mean over the prompts that all have a score of; the earlier
    epoch on a tie. One with less than half as many scores as another is out of the race."""
    most = max(len(scores) for _, scores in candidates)
    able = [(id_, scores) for id_, scores in candidates if len(scores) * 2 >= most]
    common = set.intersection(*(set(scores) for _, scores in able))

    def rank(candidate: tuple[uuid.UUID, Scores]) -> float:
        _, scored = candidate
        return fmean(s for p, s in scored.items() if p in common or not common)

    return max(able, key=rank)[0]
