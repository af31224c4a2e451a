"""What outputs of a job look like: counts, lengths, scores. All of it is counted by Postgres."""

import uuid
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.db.tables import Completion, Job, Judgment

EQUAL = 1e-9
"""Scores of a prompt that differ by less have no spread."""


def outputs(
    session: Session, generate_job: uuid.UUID, judge_job: uuid.UUID
) -> dict[str, Any] | None:
    """None where nothing was sampled, or where it has been pruned."""
    parsed = Completion.response_start.is_not(None)
    row = session.execute(
        select(
            func.count().label("completions"),
            func.count(Completion.response_start).label("parsed"),
            func.count().filter(Completion.truncated).label("truncated"),
            func.count().filter(Completion.forced).label("forced"),
            *_length("thought", Completion.thought_tokens),
            *_length("response", Completion.response_tokens, parsed),
        ).where(Completion.job_id == generate_job)
    ).one()
    if not row.completions:
        return None
    return {
        "completions": row.completions,
        "parse_failures": row.completions - row.parsed,
        "parse_rate": row.parsed / row.completions,
        "truncated": row.truncated,
        "forced": row.forced,
        "thought_tokens": _read_length(row, "thought"),
        "response_tokens": _read_length(row, "response"),
        "scores": {**_judged(session, judge_job), "spread": _spread(session, judge_job)},
        "judge": _judge_result(session, judge_job),
    }


def _length(
    name: str, column: InstrumentedAttribute[int], where: ColumnElement[bool] | None = None
) -> list[ColumnElement[float]]:
    figures: dict[str, Any] = {
        "mean": func.avg(column),
        "p50": func.percentile_cont(0.5).within_group(column),
        "p90": func.percentile_cont(0.9).within_group(column),
    }
    return [
        (figure if where is None else figure.filter(where)).label(f"{name}_{what}")
        for what, figure in figures.items()
    ]


def _read_length(row: Any, name: str) -> dict[str, float] | None:
    found = {what: getattr(row, f"{name}_{what}") for what in ("mean", "p50", "p90")}
    if found["mean"] is None:
        return None
    return {what: float(value) for what, value in found.items()}


def _judged(session: Session, judge_job: uuid.UUID) -> dict[str, Any]:
    """Responses with a score and without one, these by the judge's reason."""
    reason = func.coalesce(Judgment.details["reason"].as_string(), "not_given")
    rows = session.execute(
        select(Judgment.score.is_not(None), reason, func.count())
        .where(Judgment.job_id == judge_job)
        .group_by(Judgment.score.is_not(None), reason)
    ).all()
    reasons = {str(why): n for scored, why, n in rows if not scored}
    return {
        "judged": sum(n for scored, _, n in rows if scored),
        "unjudged": sum(reasons.values()),
        "unjudged_reasons": dict(sorted(reasons.items())),
    }


def _spread(session: Session, judge_job: uuid.UUID) -> dict[str, Any]:
    """Over prompts with two scored responses or more: without spread there is nothing to learn."""
    prompts = (
        select(
            func.stddev_pop(Judgment.score).label("std"),
            (func.max(Judgment.score) - func.min(Judgment.score)).label("range"),
        )
        .join(Completion, Completion.id == Judgment.completion_id)
        .where(and_(Judgment.job_id == judge_job, Judgment.score.is_not(None)))
        .group_by(Completion.prompt_index)
        .having(func.count() > 1)
        .subquery()
    )
    n, std, flat = session.execute(
        select(
            func.count(),
            func.avg(prompts.c.std),
            func.count().filter(prompts.c.range <= EQUAL),
        )
    ).one()
    return {
        "prompts": n,
        "mean_std": None if std is None else float(std),
        "zero_share": flat / n if n else None,
    }


def _judge_result(session: Session, judge_job: uuid.UUID) -> dict[str, Any]:
    """What the judge counted itself, as comparisons, tokens or dollars."""
    job = session.get(Job, judge_job)
    return dict((job and job.result) or {})
