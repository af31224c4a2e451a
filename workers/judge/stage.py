"""Stage: responses -> judgments, a shard at a time.

`python -m workers.judge.stage --job ID`. The judge sees the user's own instruction and the
response, never its thought and never the thought prompt. Shards follow those of a generate job: a
judge that needs nothing of the machine stays while they come in, asleep on a notification in
between.
"""

import contextvars
import logging
import queue
import threading
import time
import uuid
from collections import Counter

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from shared.db.engine import listen, transaction
from shared.db.tables import Json, JudgeAnswer, Judgment
from shared.jobs.job import get_job
from shared.jobs.shards import Claim, LeaseLost
from shared.schemas.judges import Needs, judge_spec
from workers.job_spec import JobSpec
from workers.judge.items import JudgedShard, load
from workers.judge.kinds import CannotJudge, Judge, JudgeContext, Score, make_judge
from workers.leases import Leases, StageError, bound, leases
from workers.stage import arguments, start

log = logging.getLogger(__name__)
WAIT_SECONDS = 2.0
"""Longest sleep between two looks for work; a notification ends it sooner."""
IDLE_SECONDS = 20.0
"""Without work for so long it leaves, or waiting judges could hold all of a worker's threads while
what they wait for has none. The loop sends the job again when there is a shard to take."""


def main(job: JobSpec, worker: str, engine_url: str) -> None:
    judge = make_judge(judge_spec(job.params["judge"]), JudgeContext(job.id, engine_url))
    # One that holds the engine or the device makes room for what it waits for.
    waits = job.params["generate_job_id"] is not None and job.needs is Needs.nothing
    with leases(job.id, worker) as held, listen() as listener:
        worked_at = time.monotonic()
        while True:
            if _take_in_parallel(held, judge, job.params):
                worked_at = time.monotonic()
            idle = time.monotonic() - worked_at > IDLE_SECONDS
            if not waits or idle or not _more_to_come(job):
                return
            for _ in listener.notifies(timeout=WAIT_SECONDS, stop_after=1):
                pass


def _more_to_come(job: JobSpec) -> bool:
    with transaction() as session:
        both = (job.id, uuid.UUID(job.params["generate_job_id"]))
        return not any(get_job(session, job_id).status.terminal for job_id in both)


def _take_in_parallel(held: Leases, judge: Judge, params: Json) -> int:
    """Until no shard can be taken, or one taker fails; how many were taken."""
    stop = threading.Event()
    results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def take() -> None:
        try:
            results.put(_take_shards(held, judge, params, stop))
        except BaseException as error:
            results.put(error)

    takers = range(judge.shards_at_once)
    for _ in takers:
        # Daemons, for a stage that is asked to leave must not wait for answers under way; each with
        # what is bound to log lines.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(take,), daemon=True).start()
    taken = 0
    try:
        for _ in takers:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            taken += result
    finally:
        stop.set()
    return taken


def _take_shards(held: Leases, judge: Judge, params: Json, stop: threading.Event) -> int:
    taken = 0
    while not stop.is_set() and (claim := held.claim(on_lost=lambda: None)) is not None:
        with bound(claim):
            _run_shard(held, claim, judge, params)
        taken += 1
    return taken


def _run_shard(held: Leases, claim: Claim, judge: Judge, params: Json) -> None:
    with transaction() as session:
        shard = load(session, claim, params)
    try:
        scores = _scores(judge, shard)
    except CannotJudge as error:
        held.fail(claim, StageError(f"{judge.name}: {error}", code="judge_failed", param="judge"))
        return
    except StageError as error:
        held.fail(claim, error)
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
        for key, score in zip(shard.keys, scores, strict=True)
    ]

    def write(session: Session) -> None:
        if rows:
            session.execute(insert(Judgment), rows)
        if get_job(session, claim.job_id).status.terminal:
            session.execute(delete(JudgeAnswer).where(JudgeAnswer.job_id == claim.job_id))

    try:
        held.finish(claim, _result(judge, scores), write)
    except LeaseLost:
        log.warning("dropped a shard whose lease was lost")


def _scores(judge: Judge, shard: JudgedShard) -> list[Score]:
    if shard.against_itself:
        return [Score(0.5, {"reason": "itself"}) for _ in shard.items]
    if shard.others is None:
        return judge.score(shard.items)
    # A response without an opponent has won.
    contested = [i for i, others in enumerate(shard.others) if others]
    shares = judge.win_shares(
        [shard.items[i] for i in contested], [shard.others[i] for i in contested]
    )
    scores = [Score(1.0, {"reason": "no_opponent"}) for _ in shard.items]
    for i, share in zip(contested, shares, strict=True):
        scores[i] = share
    return scores


def _result(judge: Judge, scores: list[Score]) -> Json:
    unjudged = sum(score.value is None for score in scores)
    counts: Counter[str] = Counter(judged=len(scores) - unjudged, unjudged=unjudged)
    for score in scores:
        counts.update(score.counts)
    return {**counts, "versions": judge.versions()}


if __name__ == "__main__":
    args = arguments(__doc__, engine_url="")
    start(args, lambda job: main(job, args.worker, args.engine_url))
