"""Loads the responses that a shard of a judge job scores."""

import uuid
from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import Completion, Json, Shard
from shared.jobs.shards import Claim
from shared.schemas.requests import JudgeItem
from workers.generate.prompts import ShardPrompt, load_prompts


@dataclass(frozen=True)
class JudgedShard:
    """The responses that a shard scores; `keys[i]` are the columns that name the completion or the
    item of `items[i]`."""

    keys: list[dict[str, int]]
    items: list[JudgeItem]
    others: list[list[JudgeItem]] | None = None
    """For a job against another one: the responses of that one to the instruction of each item."""
    against_itself: bool = False


def load(session: Session, claim: Claim, params: Json) -> JudgedShard:
    if "items" in claim.payload:
        start_at = claim.payload["start"]
        items = [JudgeItem.model_validate(item) for item in claim.payload["items"]]
        return JudgedShard([{"item_index": start_at + i} for i in range(len(items))], items)
    shard_id = claim.payload["generate_shard_id"]
    payload = session.get_one(Shard, shard_id).payload
    prompts = {p.index: p for p in load_prompts(session, payload)}
    query = select(Completion).where(
        Completion.shard_id == shard_id, Completion.response_start.is_not(None)
    )
    completions = session.scalars(query.order_by(Completion.id)).all()
    keys = [{"completion_id": completion.id} for completion in completions]
    items = [_item(prompts[c.prompt_index], c) for c in completions]
    against = params.get("against_generate_job_id")
    if against is None:
        return JudgedShard(keys, items)
    if against == params["generate_job_id"]:
        return JudgedShard(keys, items, against_itself=True)
    theirs = _theirs(session, uuid.UUID(against), prompts)
    return JudgedShard(keys, items, [theirs[c.prompt_index] for c in completions])


def _theirs(
    session: Session, job_id: uuid.UUID, prompts: dict[int, ShardPrompt]
) -> dict[int, list[JudgeItem]]:
    query = select(Completion).where(
        Completion.job_id == job_id,
        Completion.prompt_index.in_(prompts),
        Completion.response_start.is_not(None),
    )
    responses: dict[int, list[JudgeItem]] = defaultdict(list)
    for completion in session.scalars(query.order_by(Completion.id)):
        responses[completion.prompt_index].append(
            _item(prompts[completion.prompt_index], completion)
        )
    return responses


def _item(prompt: ShardPrompt, completion: Completion) -> JudgeItem:
    return JudgeItem.model_validate(
        {
            "instruction": prompt.text,
            "response": completion.response,
            "checks": prompt.checks,
        }
    )
