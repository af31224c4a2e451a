"""The prompts behind a generate shard, whether its payload carries them or their ids."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.models import Json, Prompt, Shard


@dataclass(frozen=True)
class ShardPrompt:
    """`index` is the prompt's position in its job; `text` the user's own instruction."""

    index: int
    place: str
    """Where its user finds it, from 1: the job's order is no one's but ours."""
    prompt_id: int | None
    text: str
    checks: Sequence[Json]


def load_prompts(session: Session, payload: dict[str, Any]) -> list[ShardPrompt]:
    start = payload["start"]
    if "prompts" in payload:
        return [
            ShardPrompt(start + i, f"prompt {start + i + 1}", None, p["text"], p["checks"])
            for i, p in enumerate(payload["prompts"])
        ]
    ids = payload["prompt_ids"]
    rows = {p.id: p for p in session.scalars(select(Prompt).where(Prompt.id.in_(ids)))}
    return [
        ShardPrompt(start + i, _place(row), row.id, row.text, row.checks)
        for i, row in enumerate(rows[id_] for id_ in ids)
    ]


def longer_prompts(session: Session, job_id: uuid.UUID, most_bytes: int) -> list[ShardPrompt]:
    """Those of a job's unfinished shards whose texts have more bytes than this."""
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


def _place(row: Prompt) -> str:
    return f"prompt {row.position + 1} of the dataset ({row.split})"
