"""A run's report: its iterations side by side, and beside those of its direct baseline."""

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.coordinator.evaluation.scored_outputs import load
from services.coordinator.iterations.baseline import baseline_of
from services.coordinator.report.versus import thinking_vs_direct
from shared.db.tables import Iteration, Json
from shared.errors import NotFound


def run_report(session: Session, run_id: uuid.UUID) -> Json:
    """Also of a run that has not ended, as far as it has come."""
    iterations = _iterations(session, run_id)
    if not iterations:
        raise NotFound(f"no run {run_id}", param="run_id")
    baseline_id = baseline_of(session, run_id)
    beside = _iterations(session, baseline_id) if baseline_id else []
    return {
        "object": "run_report",
        **_run(iterations),
        "baseline_of": _text(iterations[0].baseline_of),
        "baseline": _run(beside) if beside else None,
        "thinking_vs_direct": _versus(session, iterations, beside),
    }


def _iterations(session: Session, run_id: uuid.UUID) -> Sequence[Iteration]:
    query = select(Iteration).where(Iteration.run_id == run_id).order_by(Iteration.number)
    return session.scalars(query).all()


def _run(iterations: Sequence[Iteration]) -> Json:
    config = iterations[0].config
    reports = [row.report for row in iterations if row.report]
    first: Json = reports[0] if reports else {}
    return {
        "run_id": str(iterations[0].run_id),
        "name": config["name"],
        "thought_format": config["thought_format"]["name"],
        "seed_model": str(iterations[0].seed_model_id),
        "judges": first.get("judges"),
        "same_judge": first.get("same_judge"),
        "warning": first.get("warning"),
        # As its first iteration found it; all share the prompts and the scores.
        "seed": {
            "score": first.get("validation", {}).get("seed_interval"),
            "floor": first.get("validation", {}).get("floor"),
            **_lengths(first, "seed"),
        },
        "iterations": [_iteration(row) for row in iterations],
    }


def _iteration(row: Iteration) -> Json:
    """Summarize one iteration. Figures that an earlier version's report lacks are None."""
    report: Json = row.report or {}
    validation = report.get("validation", {})
    return {
        "id": str(row.id),
        "number": row.number,
        "status": str(row.status),
        "model": _text(row.result_model_id),
        "score": validation.get("score_interval"),
        "floor": validation.get("floor"),
        "vs_seed": validation.get("vs_seed"),
        "vs_parent": validation.get("vs_parent"),
        "win_rate": validation.get("win_rate"),
        **_lengths(report, "validation"),
        "training_parse_rate": report.get("parse_rate"),
        "pairs": report.get("pairs", {}).get("kept"),
        "chosen_length": report.get("chosen_length"),
        "rejected_length": report.get("rejected_length"),
        "categories": report.get("categories"),
    }


def _lengths(report: Json, whose: str) -> Json:
    found = report.get("outputs", {}).get(whose) or {}
    keys = ("parse_rate", "truncated", "thought_tokens", "response_tokens")
    return {key: found.get(key) for key in keys}


def _versus(
    session: Session, thinking: Sequence[Iteration], direct: Sequence[Iteration]
) -> list[Json]:
    """A comparison for each number that both have ended."""
    others = {row.number: row for row in direct}
    found = []
    for row in thinking:
        other = others.get(row.number)
        if other is None:
            continue
        kept = [r.report.get("thinking_vs_direct") for r in (row, other) if r.report]
        versus = next((v for v in kept if v), None) or _late(session, row, other)
        if versus is not None:
            found.append({"number": row.number, **versus})
    return found


def _late(session: Session, row: Iteration, other: Iteration) -> Json | None:
    """For two that ended at one moment, and so did not find each other: from what is stored."""
    model, ended = row.result_model_id, other.result_model_id is not None
    pruned = row.pruned_at is not None or other.pruned_at is not None
    if model is None or not ended or pruned:
        return None
    loaded = load(session, row.run_id, [model, row.seed_model_id])
    return thinking_vs_direct(session, row, model, loaded) if model in loaded else None


def _text(id_: uuid.UUID | None) -> str | None:
    return None if id_ is None else str(id_)
