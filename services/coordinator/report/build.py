"""An iteration's report: what was sampled, paired and learnt, and how validation judged the model.

Built once, when the iteration succeeds, and kept with it: the rows it counts may be pruned later.
The validation outputs of each model are read once, as numbers; all else is counted by Postgres.
"""

import uuid
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from services.coordinator.evaluation.scored_outputs import load
from services.coordinator.evaluation.scores import worst
from services.coordinator.iterations.state import config_of, job_id
from services.coordinator.pairs.write import candidates
from services.coordinator.report.judges import judges
from services.coordinator.report.outputs import count, outputs, validation_outputs
from services.coordinator.report.rho import sweep
from services.coordinator.report.validation import categories, validation
from services.coordinator.report.versus import thinking_vs_direct
from shared.db.tables import Iteration, Job


def build_report(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    config, run_id, seed_id = config_of(iteration), iteration.run_id, iteration.seed_model_id
    assert iteration.parent_model_id is not None
    loaded = load(session, run_id, [chosen_id, seed_id, iteration.parent_model_id])
    floor = worst(session, config.evaluating_judge, run_id)
    sampled = count(session, job_id(iteration.id, "generate"))
    return {
        **_sampled(sampled),
        **_pairs(iteration),
        "training": _training(session, iteration),
        "validation": validation(session, iteration, chosen_id, loaded, floor),
        **categories(session, iteration, chosen_id, loaded, floor),
        "outputs": {
            "training": outputs(session, sampled, job_id(iteration.id, "judge")),
            "validation": validation_outputs(session, run_id, chosen_id),
            "seed": validation_outputs(session, run_id, seed_id),
        },
        "length_control": {
            "rho": config.length_control.rho,
            "sweep": sweep(
                candidates(session, iteration.id),
                max_parse_failure_fraction=config.pairing.max_parse_failure_fraction,
            ),
        },
        **judges(config),
        "thinking_vs_direct": thinking_vs_direct(session, iteration, chosen_id, loaded),
    }


def _sampled(counts: Row[Any]) -> dict[str, Any]:
    return {
        "prompts": counts.prompts,
        "completions": counts.completions,
        "parse_rate": counts.parsed / counts.completions,
        "truncated": counts.truncated,
        "forced": counts.forced,
        "thought_tokens_mean": float(counts.thought_mean),
        "response_tokens_mean": float(counts.response_tokens_mean),
    }


def _pairs(iteration: Iteration) -> dict[str, Any]:
    pairing = iteration.pairing or {}
    keys = ("kept", "parse_failure", "by_length_alone", "dropped")
    return {
        "pairs": {key: pairing.get(key) for key in keys},
        "chosen_length": pairing.get("chosen_length"),
        "rejected_length": pairing.get("rejected_length"),
    }


def _training(session: Session, iteration: Iteration) -> dict[str, Any]:
    result = session.get_one(Job, job_id(iteration.id, "train")).result or {}
    keys = (
        *("pairs", "pairs_dropped", "steps", "train_seconds"),
        *("first_loss", "last_loss", "reward_margin"),
    )
    return {key: result.get(key) for key in keys}
