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
from workers.judge.items import Answers, load
from workers.judge.kinds import CannotJudge, Judge, JudgeContext, Score, make_judge
from workers.leases import Leases, StageError, bound, leases
from workers.stage import arguments, start

log = logging.getLogger(__name__)
WAIT_SECONDS = 2.0
"""Longest sleep between two looks for work; a notification ends it sooner."""
IDLE_SECONDS = 20.0
"""Without work for so long it leaves, or waiting judges could hold all of a worker's threads while
what they wait for has none. The loop sends the job again when there is a shard to take."""


def main(job_id: uuid.UUID, worker: str, engine_url: str) -> None:
    with transaction() as session:
        params = get_job(session, job_id).params
    spec = judge_spec(params["judge"])
    judge = make_judge(spec, JudgeContext(job_id, engine_url))
    # One that holds the engine or the device makes room for what it waits for.
    waits = params["generate_job_id"] is not None and spec.needs is Needs.nothing
    with leases(job_id, worker) as held, listen() as listener:
        worked_at = time.monotonic()
        while True:
            if _take_in_parallel(held, judge):
                worked_at = time.monotonic()
            idle = time.monotonic() - worked_at > IDLE_SECONDS
            if not waits or idle or not _more_to_come(job_id):
                return
            for _ in listener.notifies(timeout=WAIT_SECONDS, stop_after=1):
                pass


def _more_to_come(job_id: uuid.UUID) -> bool:
    with transaction() as session:
        job = get_job(session, job_id)
        upstream = get_job(session, uuid.UUID(job.params["generate_job_id"]))
        return not job.status.terminal and not upstream.status.terminal


def _take_in_parallel(held: Leases, judge: Judge) -> int:
    """Until no shard can be taken, or one taker fails; how many were taken."""
    stop = threading.Event()
    results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def take() -> None:
        try:
            results.put(_take_shards(held, judge, stop))
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


def _take_shards(held: Leases, judge: Judge, stop: threading.Event) -> int:
    taken = 0
    while not stop.is_set() and (claim := held.claim(on_lost=lambda: None)) is not None:
        with bound(claim):
            _run_shard(held, claim, judge)
        taken += 1
    return taken


def _run_shard(held: Leases, claim: Claim, judge: Judge) -> None:
    with transaction() as session:
        answers = load(session, claim)
    try:
        scores = _scores(judge, answers)
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
        for key, score in zip(answers.keys, scores, strict=True)
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


def _scores(judge: Judge, answers: Answers) -> list[Score]:
    if answers.against_itself:
        return [Score(0.5, {"reason": "itself"}) for _ in answers.items]
    if answers.others is None:
        return judge.score(answers.items)
    # What has nobody to lose against has won.
    contested = [i for i, others in enumerate(answers.others) if others]
    shares = judge.win_shares(
        [answers.items[i] for i in contested], [answers.others[i] for i in contested]
    )
    scores = [Score(1.0, {"reason": "no_opponent"}) for _ in answers.items]
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
    start(args, lambda: main(args.job, args.worker, args.engine_url))
