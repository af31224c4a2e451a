"""Thinking beside its direct baseline: the models of one iteration on the same prompts."""

import uuid
from typing import Any

from sqlalchemy.orm import Session

from services.coordinator.evaluation.scored_outputs import OutputsByModel, load
from services.coordinator.evaluation.scores import compare, scores, worst
from services.coordinator.evaluation.winrate import comparisons, win_rate
from services.coordinator.iterations.baseline import counterpart
from services.coordinator.iterations.state import config_of
from shared.db.tables import Iteration

OWN_SEEDS = (
    "The judge compares responses: each score is the share won against the responses of the run's "
    "own seed, with thoughts or without. The difference says which run gained more over its seed."
)


def thinking_vs_direct(
    session: Session, iteration: Iteration, model_id: uuid.UUID, loaded: OutputsByModel
) -> dict[str, Any] | None:
    """Thinking minus direct, prompt by prompt, whichever of the two the iteration is.

    `loaded` holds the outputs of the iteration's model and seed. None until the counterpart has
    ended: the later of the two reports has the comparison.
    """
    other = counterpart(session, iteration)
    if other is None or other.result_model_id is None:
        return None
    others = load(session, other.run_id, [other.result_model_id, iteration.seed_model_id])
    sides = [(model_id, loaded), (other.result_model_id, others)]
    thinking, direct = reversed(sides) if iteration.baseline_of else sides
    (thinking_id, thinking_loaded), (direct_id, direct_loaded) = thinking, direct
    model, opponent = thinking_loaded[thinking_id], direct_loaded[direct_id]
    judge = config_of(iteration).evaluating_judge
    floor = worst(session, judge, iteration.run_id, other.run_id)
    found = {
        "thinking_model": str(thinking_id),
        "direct_model": str(direct_id),
        "measure": "share_won_against_own_seed" if judge.compares else "score",
        "note": OWN_SEEDS if judge.compares else None,
        "difference": compare(scores(model, floor), scores(opponent, floor)),
    }
    if judge.compares:  # it has not seen what the two runs wrote side by side
        return found | {"win_rate": None, "win_rate_against_direct_seed": None}
    # Both runs begin with one model; here it is as it answers without thoughts.
    direct_seed = direct_loaded[iteration.seed_model_id]
    return found | {
        "win_rate": win_rate(comparisons(model, opponent)),
        "win_rate_against_direct_seed": win_rate(comparisons(model, direct_seed)),
    }
