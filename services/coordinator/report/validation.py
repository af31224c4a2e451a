"""Validation of the model that an iteration chose, beside the seed and the parent."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.coordinator.evaluation.scored_outputs import (
    OutputsByModel,
    ScoredOutput,
    ScoredOutputs,
    judged_outputs,
)
from services.coordinator.evaluation.scores import (
    Scores,
    checkpoint_scores,
    compare,
    scores,
)
from services.coordinator.evaluation.stats import mean_interval
from services.coordinator.evaluation.winrate import (
    PromptComparison,
    comparisons,
    comparisons_by_share,
    win_rate,
)
from services.coordinator.iterations.state import COMPARISON, compares_parent, config_of, job_id
from shared.db.tables import Evaluation, Iteration, IterationPrompt, Job, Prompt, Split
from shared.registry.lineage import versions_of

MAX_CATEGORIES = 50
"""A dataset may have as many categories as prompts."""


def validation(
    session: Session,
    iteration: Iteration,
    chosen_id: uuid.UUID,
    loaded: OutputsByModel,
    floor: float,
) -> dict[str, Any]:
    assert iteration.parent_model_id is not None
    chosen, seed, parent = (
        scores(loaded[id_], floor)
        for id_ in (chosen_id, iteration.seed_model_id, iteration.parent_model_id)
    )
    checkpoints = [
        {"epoch": model.epoch, "model": str(model.id), "score": _mean(scored)}
        for model, scored in checkpoint_scores(session, iteration, loaded)
    ]
    compares = config_of(iteration).evaluating_judge.compares
    return {
        "checkpoints": checkpoints,
        "chosen_epoch": next(c["epoch"] for c in checkpoints if c["model"] == str(chosen_id)),
        "score": _mean(chosen),
        # A judge that compares needs no floor: an output without a response loses, or ties.
        "floor": None if compares else floor,
        # A judge that was unavailable for a while may have scored no output of these.
        "seed_score": _mean(seed),
        "parent_score": _mean(parent),
        "score_interval": mean_interval([*chosen.values()]).as_json(),
        "seed_interval": mean_interval([*seed.values()]).as_json() if seed else None,
        "vs_seed": compare(chosen, seed),
        "vs_parent": compare(chosen, parent),
        "win_rate": {
            **_win_rates(session, iteration, chosen_id, loaded),
            "gain_in_share_over_parent": compare(chosen, parent) if compares else None,
        },
        "versions": versions_of(session, iteration, Job.step.startswith("evaluate-")),
    }


def _mean(scored: Scores) -> float | None:
    return fmean(scored.values()) if scored else None


def _win_rates(
    session: Session, iteration: Iteration, chosen_id: uuid.UUID, loaded: OutputsByModel
) -> dict[str, Any]:
    seed_id, parent_id = iteration.seed_model_id, iteration.parent_model_id
    assert parent_id is not None
    compared = _compared(iteration)
    against_seed = win_rate(compared(loaded[chosen_id], loaded[seed_id]))
    if parent_id == seed_id:
        return {"seed": against_seed, "parent": against_seed}
    chosen = loaded[chosen_id]
    if compares_parent(iteration):  # by a judge job of its own
        row = session.get_one(Evaluation, (iteration.run_id, chosen_id))
        chosen = judged_outputs(session, row.generate_job_id, job_id(iteration.id, COMPARISON))
    return {"seed": against_seed, "parent": win_rate(compared(chosen, loaded[parent_id]))}


def _compared(
    iteration: Iteration,
) -> Callable[[ScoredOutputs, ScoredOutputs], Sequence[PromptComparison]]:
    """The scores of a judge that compares already are shares won."""
    compares = config_of(iteration).evaluating_judge.compares
    return comparisons_by_share if compares else comparisons


def categories(
    session: Session,
    iteration: Iteration,
    chosen_id: uuid.UUID,
    loaded: OutputsByModel,
    floor: float,
) -> dict[str, Any]:
    """Score, difference to the seed and win rate against it by category, the largest first.

    Prompts without a category are left out.
    """
    query = (
        select(Prompt.id, Prompt.category)
        .join(IterationPrompt, IterationPrompt.prompt_id == Prompt.id)
        .where(
            IterationPrompt.iteration_id == iteration.id,
            IterationPrompt.split == Split.validation,
            Prompt.category.is_not(None),
        )
    )
    category = {prompt_id: str(name) for prompt_id, name in session.execute(query)}
    chosen = _by_category(loaded[chosen_id], category)
    seed = _by_category(loaded[iteration.seed_model_id], category)
    shown = sorted(chosen, key=lambda name: (-len(chosen[name]), name))[:MAX_CATEGORIES]
    compared = _compared(iteration)

    def row(name: str) -> dict[str, Any]:
        ours, theirs = chosen[name], seed.get(name, {})
        our_scores, their_scores = scores(ours, floor), scores(theirs, floor)
        return {
            "category": name,
            "prompts": len(ours),
            "score": _mean(our_scores),
            "seed_score": _mean(their_scores),
            "vs_seed": compare(our_scores, their_scores),
            "win_rate": {"seed": win_rate(compared(ours, theirs))},
        }

    return {
        "categories": [row(name) for name in shown],
        "categories_left_out": len(chosen) - len(shown),
    }


def _by_category(
    outputs: ScoredOutputs, category: Mapping[int, str]
) -> dict[str, dict[int, Sequence[ScoredOutput]]]:
    groups: dict[str, dict[int, Sequence[ScoredOutput]]] = {}
    for prompt_id, group in outputs.items():
        if prompt_id in category:
            groups.setdefault(category[prompt_id], {})[prompt_id] = group
    return groups
