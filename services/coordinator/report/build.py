"""An iteration's report: what was sampled, paired, learnt, and how validation judged it.

Built once, when the iteration succeeds, and kept with it: what it counts may be pruned later.
"""

import uuid
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import config_of, job_id
from services.coordinator.pairs.write import candidates
from services.coordinator.report.judges import judges
from services.coordinator.report.outputs import outputs
from services.coordinator.report.rho import sweep
from services.coordinator.report.validation import categories, evaluated, validation
from services.coordinator.report.versus import thinking_vs_direct
from shared.db.tables import Completion, Iteration, Job


def build_report(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    config, run = config_of(iteration), iteration.run_id
    steps = job_id(iteration.id, "generate"), job_id(iteration.id, "judge")
    return {
        **_sampled(session, iteration),
        **_pairs(iteration),
        "training": _training(session, iteration),
        "validation": validation(session, iteration, chosen_id),
        **categories(session, iteration, chosen_id),
        "outputs": {
            "training": outputs(session, *steps),
            "validation": evaluated(session, run, chosen_id),
            "seed": evaluated(session, run, iteration.seed_model_id),
        },
        "length_control": {
            "rho": config.length_control.rho,
            "sweep": sweep(
                candidates(session, iteration.id),
                max_parse_failure_fraction=config.pairing.max_parse_failure_fraction,
            ),
        },
        **judges(config),
        "thinking_vs_direct": thinking_vs_direct(session, iteration, chosen_id),
    }


def _sampled(session: Session, iteration: Iteration) -> dict[str, Any]:
    row = session.execute(
        select(
            func.count(func.distinct(Completion.prompt_index)).label("prompts"),
            func.count().label("completions"),
            func.count(Completion.response_start).label("parsed"),
            func.count().filter(Completion.truncated).label("truncated"),
            func.count().filter(Completion.forced).label("forced"),
            func.avg(Completion.thought_tokens).label("thought_tokens"),
            func.avg(Completion.response_tokens).label("response_tokens"),
        ).where(Completion.job_id == job_id(iteration.id, "generate"))
    ).one()
    return {
        "prompts": row.prompts,
        "completions": row.completions,
        "parse_rate": row.parsed / row.completions,
        "truncated": row.truncated,
        "forced": row.forced,
        "thought_tokens_mean": float(row.thought_tokens),
        "response_tokens_mean": float(row.response_tokens),
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
