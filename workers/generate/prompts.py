"""The prompts behind a generate shard, whether its payload carries them or their ids."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db.tables import Dataset, IterationPrompt, Job, Json, Prompt, Shard, Split


@dataclass(frozen=True)
class ShardPrompt:
    """`index` is the prompt's position in its job; `text` the user's own instruction."""

    index: int
    prompt_id: int | None
    text: str
    checks: Sequence[Json]


def load_prompts(session: Session, payload: dict[str, Any]) -> list[ShardPrompt]:
    start = payload["start"]
    if "prompts" in payload:
        return [
            ShardPrompt(start + i, None, p["text"], p["checks"])
            for i, p in enumerate(payload["prompts"])
        ]
    ids = payload["prompt_ids"]
    rows = {p.id: p for p in session.scalars(select(Prompt).where(Prompt.id.in_(ids)))}
    return [
        ShardPrompt(start + i, row.id, row.text, row.checks)
        for i, row in enumerate(rows[id_] for id_ in ids)
    ]


def longer_prompts(session: Session, job_id: uuid.UUID, most_bytes: int) -> list[ShardPrompt]:
    """Those whose texts have more bytes than this, of a job's unfinished shards. Of an iteration's
    job all that the iteration has, for the turn of its other split comes hours later."""
    iteration_id = session.get_one(Job, job_id).iteration_id
    if iteration_id is not None:
        return _longer_of_iteration(session, iteration_id, most_bytes)
    unfinished = (
        select(Shard.payload)
        .where(Shard.job_id == job_id, Shard.finished_at.is_(None))
        .order_by(Shard.index)
    )
    return [
        prompt
        for payload in session.scalars(unfinished.execution_options(yield_per=100))
        for prompt in load_prompts(session, payload)
        if len(prompt.text.encode()) > most_bytes
    ]


def _longer_of_iteration(
    session: Session, iteration_id: uuid.UUID, most_bytes: int
) -> list[ShardPrompt]:
    at = IterationPrompt
    rows = session.execute(
        select(at.position, Prompt)
        .join(Prompt, Prompt.id == at.prompt_id)
        .where(at.iteration_id == iteration_id, func.octet_length(Prompt.text) > most_bytes)
        .order_by(at.split, at.position)
        .execution_options(yield_per=100)
    )
    return [ShardPrompt(position, row.id, row.text, row.checks) for position, row in rows]


def place_of(session: Session, prompt: ShardPrompt) -> tuple[str, str]:
    """Name the prompt as its user knows it: in words, counted from 1, and as a field of the
    request. The user does not know the job's own order."""
    if prompt.prompt_id is None:
        return f"prompt {prompt.index + 1}", f"prompts.{prompt.index}"
    row = session.get_one(Prompt, prompt.prompt_id)
    if session.get_one(Dataset, row.dataset_id).source != "inline":
        return f"prompt {row.position + 1} of the dataset ({row.split})", "dataset"
    field = "prompts" if row.split is Split.train else "validation_prompts"
    index = _index_in_split(session, row)
    return f"prompt {index + 1} of {field}", f"{field}.{index}"


def _index_in_split(session: Session, row: Prompt) -> int:
    before = select(func.count()).where(
        Prompt.dataset_id == row.dataset_id,
        Prompt.split == row.split,
        Prompt.position < row.position,
    )
    return session.scalar(before) or 0
