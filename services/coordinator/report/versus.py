"""Thinking beside its direct baseline: the models of one iteration on the same prompts."""

import uuid
from typing import Any

from sqlalchemy.orm import Session

from services.coordinator.evaluation import scores as evaluation
from services.coordinator.evaluation.winrate import duels, win_rate
from services.coordinator.iterations.baseline import counterpart
from services.coordinator.iterations.state import config_of
from shared.db.tables import Iteration

OWN_SEEDS = (
    "The judge compares responses: each score is a share won against the responses of its own "
    "run's seed, with thoughts or without. The difference is which gained more over its seed."
)


def thinking_vs_direct(
    session: Session, iteration: Iteration, model_id: uuid.UUID
) -> dict[str, Any] | None:
    """Thinking minus direct, prompt by prompt, whichever of the two the iteration is.

    None until its counterpart has ended: the later of the two reports has it.
    """
    other = counterpart(session, iteration)
    if other is None or other.result_model_id is None:
        return None
    ours, theirs = (iteration.run_id, model_id), (other.run_id, other.result_model_id)
    thinking, direct = (theirs, ours) if iteration.baseline_of else (ours, theirs)
    compares = config_of(iteration).evaluating_judge.compares
    floor = evaluation.worst(session, thinking[0], direct[0])
    found = {
        "thinking_model": str(thinking[1]),
        "direct_model": str(direct[1]),
        "measure": "share_won_against_own_seed" if compares else "score",
        "note": OWN_SEEDS if compares else None,
        "difference": evaluation.compare(
            evaluation.scores(session, *thinking, floor),
            evaluation.scores(session, *direct, floor),
        ),
    }
    if compares:  # it has not seen what the two runs wrote side by side
        return found | {"win_rate": None, "win_rate_against_direct_seed": None}
    # Both runs begin with one model; here it is as it answers without thoughts.
    seed = direct[0], iteration.seed_model_id
    model = evaluation.samples(session, *thinking)
    return found | {
        "win_rate": win_rate(duels(model, evaluation.samples(session, *direct))),
        "win_rate_against_direct_seed": win_rate(duels(model, evaluation.samples(session, *seed))),
    }
