"""Counts, lengths and scores of a job's outputs. Postgres counts; no text is read."""

import uuid
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.db.tables import Completion, Evaluation, Job, Judgment

EQUAL = 1e-9
"""Scores of one prompt that differ by less count as equal."""


def count(session: Session, generate_job: uuid.UUID) -> Row[Any]:
    """One row: how many outputs the job sampled, of which kinds, and how long they are."""
    parsed = Completion.response_start.is_not(None)
    query = select(
        func.count(func.distinct(Completion.prompt_index)).label("prompts"),
        func.count().label("completions"),
        func.count(Completion.response_start).label("parsed"),
        func.count().filter(Completion.truncated).label("truncated"),
        func.count().filter(Completion.forced).label("forced"),
        func.avg(Completion.response_tokens).label("response_tokens_mean"),
        *_length("thought", Completion.thought_tokens),
        *_length("response", Completion.response_tokens, parsed),
    )
    return session.execute(query.where(Completion.job_id == generate_job)).one()


def outputs(session: Session, counts: Row[Any], judge_job: uuid.UUID) -> dict[str, Any] | None:
    """The counts with the scores of a judge job. None if nothing was sampled, or all was pruned."""
    if not counts.completions:
        return None
    job = session.get(Job, judge_job)
    return {
        "completions": counts.completions,
        "parse_failures": counts.completions - counts.parsed,
        "parse_rate": counts.parsed / counts.completions,
        "truncated": counts.truncated,
        "forced": counts.forced,
        "thought_tokens": _read_length(counts, "thought"),
        "response_tokens": _read_length(counts, "response"),
        "scores": {**_judged(session, judge_job), "spread": _spread(session, judge_job)},
        # The judge's own counts, such as comparisons, tokens or dollars.
        "judge": dict((job and job.result) or {}),
    }


def validation_outputs(
    session: Session, run_id: uuid.UUID, model_id: uuid.UUID
) -> dict[str, Any] | None:
    """The same of the outputs that a model gave to the validation prompts."""
    row = session.get_one(Evaluation, (run_id, model_id))
    return outputs(session, count(session, row.generate_job_id), row.judge_job_id)


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


def _read_length(row: Row[Any], name: str) -> dict[str, float] | None:
    figures = {what: getattr(row, f"{name}_{what}") for what in ("mean", "p50", "p90")}
    if figures["mean"] is None:
        return None
    return {what: float(value) for what, value in figures.items()}


def _judged(session: Session, judge_job: uuid.UUID) -> dict[str, Any]:
    """Responses with a score, and without one by the judge's reason."""
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
    """Measure how far apart the scores of one prompt are: without spread there is nothing to learn.

    Only prompts with two scored responses or more count.
    """
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
