"""An iteration's report: what was sampled, paired, learnt, and how validation judged it."""

import uuid
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.coordinator import evaluation
from services.coordinator.state import checkpoints, job_id
from shared.models import Completion, Iteration, Job


def build(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    return {
        **_sampled(session, iteration),
        **_pairs(iteration),
        "training": _training(session, iteration),
        "validation": _validation(session, iteration, chosen_id),
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
    counts = {key: pairing.get(key) for key in ("kept", "parse_failure", "dropped")}
    return {
        "pairs": counts,
        "chosen_length": pairing.get("chosen_length"),
        "rejected_length": pairing.get("rejected_length"),
    }


def _training(session: Session, iteration: Iteration) -> dict[str, Any]:
    result = session.get_one(Job, job_id(iteration.id, "train")).result or {}
    keys = ("first_loss", "last_loss", "reward_margin", "steps", "train_seconds")
    return {key: result.get(key) for key in keys}


def _validation(session: Session, iteration: Iteration, chosen_id: uuid.UUID) -> dict[str, Any]:
    run = iteration.run_id
    chosen = evaluation.scores(session, run, chosen_id)
    seed = evaluation.scores(session, run, iteration.seed_model_id)
    assert iteration.parent_model_id is not None
    parent = evaluation.scores(session, run, iteration.parent_model_id)
    rows = checkpoints(session, iteration)
    scored = [m for m in rows if evaluation.exists(session, run, m.id)]
    return {
        "checkpoints": [
            {
                "epoch": m.epoch,
                "model": str(m.id),
                "score": evaluation.mean(evaluation.scores(session, run, m.id)),
            }
            for m in scored
        ],
        "chosen_epoch": next(m.epoch for m in rows if m.id == chosen_id),
        "score": evaluation.mean(chosen),
        "seed_score": evaluation.mean(seed),
        "parent_score": evaluation.mean(parent),
        "vs_seed": evaluation.compare(chosen, seed),
        "vs_parent": evaluation.compare(chosen, parent),
    }
