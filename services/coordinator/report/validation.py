"""How validation judged the model that an iteration chose, beside the seed and the parent."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.coordinator.evaluation import scores as evaluation
from services.coordinator.evaluation.winrate import Duel, Samples, duels, duels_by_share, win_rate
from services.coordinator.iterations.state import COMPARISON, compares_parent, config_of, job_id
from services.coordinator.report.outputs import outputs
from shared.db.tables import Evaluation, Iteration, IterationPrompt, Job, Prompt, Split
from shared.registry.lineage import versions_of

MAX_CATEGORIES = 50
"""A dataset may name as many as it has prompts."""
T = TypeVar("T")


def validation(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    run = iteration.run_id
    chosen = evaluation.scores(session, run, chosen_id)
    seed = evaluation.scores(session, run, iteration.seed_model_id)
    assert iteration.parent_model_id is not None
    parent = evaluation.scores(session, run, iteration.parent_model_id)
    scored = evaluation.checkpoint_scores(session, iteration)
    compares = config_of(iteration).evaluating_judge.compares
    return {
        "checkpoints": [
            {
                "epoch": m.epoch,
                "model": str(m.id),
                "score": evaluation.mean(found) if found else None,
            }
            for m, found in scored
        ],
        "chosen_epoch": next(m.epoch for m, _ in scored if m.id == chosen_id),
        "score": evaluation.mean(chosen),
        # A comparing judge's scores need none: such an output loses a comparison, or ties.
        "floor": None if compares else evaluation.worst(session, run),
        # A judge that is away for a while may have scored none of theirs.
        "seed_score": evaluation.mean(seed) if seed else None,
        "parent_score": evaluation.mean(parent) if parent else None,
        "score_interval": evaluation.with_interval(list(chosen.values())),
        "seed_interval": evaluation.with_interval(list(seed.values())) if seed else None,
        "vs_seed": evaluation.compare(chosen, seed),
        "vs_parent": evaluation.compare(chosen, parent),
        "win_rate": _win_rates(session, iteration, chosen_id),
        "versions": versions_of(session, iteration, Job.step.startswith("evaluate-")),
    }


def _win_rates(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    run, seed_id, parent_id = iteration.run_id, iteration.seed_model_id, iteration.parent_model_id
    assert parent_id is not None
    compared = job_id(iteration.id, COMPARISON) if compares_parent(iteration) else None

    def against(other_id: uuid.UUID, judge_job_id: uuid.UUID | None = None) -> Any:
        model = evaluation.samples(session, run, chosen_id, judge_job_id)
        return win_rate(_duels(iteration)(model, evaluation.samples(session, run, other_id)))

    against_seed = against(seed_id)
    return {
        "seed": against_seed,
        "parent": against_seed if parent_id == seed_id else against(parent_id, compared),
        "gain_in_share_over_parent": evaluation.compare(
            evaluation.scores(session, run, chosen_id),
            evaluation.scores(session, run, parent_id),
        )
        if config_of(iteration).evaluating_judge.compares
        else None,
    }


def _duels(iteration: Iteration) -> Callable[[Samples, Samples], list[Duel]]:
    """Scores of a judge that compares are shares won against the other's responses already."""
    return duels_by_share if config_of(iteration).evaluating_judge.compares else duels


def categories(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    """Score, difference to the seed and win rate against it by category, the largest first;
    prompts that the dataset puts in none are left out."""
    run, seed_id = iteration.run_id, iteration.seed_model_id
    query = (
        select(Prompt.id, Prompt.category)
        .join(IterationPrompt, IterationPrompt.prompt_id == Prompt.id)
        .where(
            IterationPrompt.iteration_id == iteration.id,
            IterationPrompt.split == Split.validation,
            Prompt.category.is_not(None),
        )
    )
    named = {prompt_id: str(category) for prompt_id, category in session.execute(query)}
    chosen = evaluation.scores(session, run, chosen_id)
    sizes = Counter(named[p] for p in chosen if p in named)
    shown = sorted(sizes, key=lambda name: (-sizes[name], name))[:MAX_CATEGORIES]
    ours = _by_category(chosen, named)
    theirs = _by_category(evaluation.scores(session, run, seed_id), named)
    our_samples = _by_category(evaluation.samples(session, run, chosen_id), named)
    their_samples = _by_category(evaluation.samples(session, run, seed_id), named)
    fought = _duels(iteration)
    return {
        "categories": [
            {
                "category": name,
                "prompts": sizes[name],
                "score": evaluation.mean(ours[name]),
                "seed_score": evaluation.mean(theirs[name]) if theirs[name] else None,
                "vs_seed": evaluation.compare(ours[name], theirs[name]),
                "win_rate": {"seed": win_rate(fought(our_samples[name], their_samples[name]))},
            }
            for name in shown
        ],
        "categories_left_out": len(sizes) - len(shown),
    }


def _by_category(
    found: Mapping[int, T], named: Mapping[int, str]
) -> defaultdict[str, dict[int, T]]:
    groups: defaultdict[str, dict[int, T]] = defaultdict(dict)
    for prompt_id, value in found.items():
        if prompt_id in named:
            groups[named[prompt_id]][prompt_id] = value
    return groups


def evaluated(session: Session, run_id: uuid.UUID, model_id: uuid.UUID) -> dict[str, Any] | None:
    """What a model wrote for the validation prompts."""
    row = session.get_one(Evaluation, (run_id, model_id))
    return outputs(session, row.generate_job_id, row.judge_job_id)
