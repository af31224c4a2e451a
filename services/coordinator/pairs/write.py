"""Choosing an iteration's pairs: streams scored completions, writes `pairs` and the counts."""

import uuid
from collections.abc import Iterator
from itertools import groupby

from sqlalchemy import and_, func, insert, select
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import config_of, job_id
from services.coordinator.pairs.select import Candidate, ChosenPair, choose_all
from shared.db.tables import Completion, Iteration, Judgment, Pair

CHUNK = 2000
"""Rows read or written at once: an iteration is never held in memory whole."""


def choose_pairs(
    session: Session, iteration: Iteration
) -> tuple[list[ChosenPair], dict[str, object]]:
    """Choose the pairs; returns them with their counts, which `next_step` and the report read."""
    config = config_of(iteration)
    choices, report = choose_all(
        candidates(session, iteration.id),
        rho=config.length_control.rho,
        max_parse_failure_fraction=config.pairing.max_parse_failure_fraction,
    )
    return choices, report.as_json()


def insert_pairs(session: Session, iteration_id: uuid.UUID, choices: list[ChosenPair]) -> None:
    for start in range(0, len(choices), CHUNK):
        rows = [_row(iteration_id, choice) for choice in choices[start : start + CHUNK]]
        session.execute(insert(Pair), rows)


def candidates(session: Session, iteration_id: uuid.UUID) -> Iterator[tuple[int, list[Candidate]]]:
    """(prompt id, its candidates), a prompt at a time."""
    parsed = Completion.response_start.is_not(None)
    judged = and_(
        Judgment.completion_id == Completion.id, Judgment.job_id == job_id(iteration_id, "judge")
    )
    rows = session.execute(
        select(
            Completion.prompt_id,
            Completion.id,
            Completion.response_tokens,
            Judgment.score,
            and_(parsed, Judgment.score.is_(None)).label("unjudged"),
            func.md5(Completion.output).label("output"),
        )
        .outerjoin(Judgment, judged)
        .where(Completion.job_id == job_id(iteration_id, "generate"))
        .order_by(Completion.prompt_index, Completion.sample_index)
        .execution_options(yield_per=CHUNK)
    )
    for prompt_id, group in groupby(rows, key=lambda row: row.prompt_id):
        assert prompt_id is not None
        yield (
            prompt_id,
            [
                Candidate(row.id, row.score, row.response_tokens, row.output, not row.unjudged)
                for row in group
            ],
        )


def _row(iteration_id: uuid.UUID, choice: ChosenPair) -> dict[str, object]:
    return {
        "iteration_id": iteration_id,
        "prompt_id": choice.prompt_id,
        "chosen_id": choice.chosen.completion_id,
        "rejected_id": choice.rejected.completion_id,
        "chosen_score": choice.chosen.score,
        "rejected_score": choice.rejected.score,
        "margin": choice.margin,
    }
