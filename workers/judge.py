"""Stage: responses -> judgments, a shard at a time.

`python -m workers.judge --job ID`. The judge sees the user's own instruction and the response,
never a thought and never the thought prompt. Shards follow those of a generate job: this process
stays while they come in, asleep on a notification in between.
"""

import logging
import time
import uuid
from typing import Any

import psycopg
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from shared import jobs
from shared.db import CHANNEL, transaction
from shared.jobs import Claim, LeaseLost
from shared.models import Completion, Judgment, Shard
from shared.schemas import JudgeItem, JudgeSpec
from shared.settings import get_settings
from workers.judges import Judge, make_judge
from workers.leases import Leases, StageError, leases
from workers.prompts import load_prompts
from workers.stage import arguments, start

log = logging.getLogger(__name__)
WAIT_SECONDS = 2.0
"""Longest sleep between two looks for work; a notification ends it sooner."""
IDLE_SECONDS = 20.0
"""Without work for so long it leaves, or waiting judges could hold all of a worker's threads while
what they wait for has none. The loop sends the job again when there is a shard to take."""


def main(job_id: uuid.UUID, worker: str) -> None:
    with transaction() as session:
        params = jobs.get(session, job_id).params
    judge = make_judge(JudgeSpec.model_validate(params["judge"]))
    follows = params["generate_job_id"] is not None
    with leases(job_id, worker) as held, _listener() as listener:
        worked_at = time.monotonic()
        while True:
            while (claim := held.claim(on_lost=lambda: None)) is not None:
                _run_shard(held, claim, judge)
                worked_at = time.monotonic()
            idle = time.monotonic() - worked_at > IDLE_SECONDS
            if not follows or idle or not _more_to_come(job_id):
                return
            for _ in listener.notifies(timeout=WAIT_SECONDS, stop_after=1):
                pass


def _listener() -> "psycopg.Connection[Any]":
    connection = psycopg.connect(
        get_settings().database_url.replace("+psycopg", ""), autocommit=True
    )
    connection.execute(f"LISTEN {CHANNEL}")
    return connection


def _more_to_come(job_id: uuid.UUID) -> bool:
    with transaction() as session:
        job = jobs.get(session, job_id)
        upstream = jobs.get(session, uuid.UUID(job.params["generate_job_id"]))
        return not job.status.terminal and not upstream.status.terminal


def _run_shard(held: Leases, claim: Claim, judge: Judge) -> None:
    with transaction() as session:
        keys, items = _items(session, claim)
    try:
        scores = judge.score(items)
    except ValueError as error:
        held.fail(claim, StageError(f"{judge.name}: {error}", code="judge_failed", param="judge"))
        return
    rows = [
        {
            **key,
            "job_id": claim.job_id,
            "shard_id": claim.shard_id,
            "judge": judge.name,
            "score": score.value,
            "details": score.details,
        }
        for key, score in zip(keys, scores, strict=True)
    ]

    def write(session: Session) -> None:
        if rows:
            session.execute(insert(Judgment), rows)

    try:
        held.finish(claim, {"judged": len(rows), "versions": {"judge": judge.name}}, write)
    except LeaseLost:
        log.warning("dropped a shard whose lease was lost", extra={"shard": claim.index})


def _items(session: Session, claim: Claim) -> tuple[list[dict[str, int]], list[JudgeItem]]:
    """What to score, with the columns that say of which completion or item it is."""
    if "items" in claim.payload:
        start_at = claim.payload["start"]
        items = [JudgeItem.model_validate(item) for item in claim.payload["items"]]
        return [{"item_index": start_at + i} for i in range(len(items))], items
    shard_id = claim.payload["generate_shard_id"]
    payload = session.get_one(Shard, shard_id).payload
    prompts = {p.index: p for p in load_prompts(session, payload)}
    keys, items = [], []
    query = select(Completion).where(
        Completion.shard_id == shard_id, Completion.response_start.is_not(None)
    )
    for completion in session.scalars(query.order_by(Completion.id)):
        prompt = prompts[completion.prompt_index]
        item = {
            "instruction": prompt.text,
            "response": completion.response,
            "checks": prompt.checks,
        }
        keys.append({"completion_id": completion.id})
        items.append(JudgeItem.model_validate(item))
    return keys, items


if __name__ == "__main__":
    args = arguments(__doc__)
    start(args, lambda: main(args.job, args.worker))
