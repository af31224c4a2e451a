"""A job's life on the real database: who may commit, who is sent again, what ends a job."""

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, insert, select, text, update
from sqlalchemy.orm import Session

from shared.db.engine import transaction
from shared.db.tables import Completion, Job, JobKind, Shard, Status
from shared.errors import Conflict, NotFound
from shared.jobs import recovery
from shared.jobs.job import NewShard, cancel_job, get_job, resume_job, submit_job
from shared.jobs.recovery import release_shards
from shared.jobs.shards import Claim, LeaseLost, claim_shard, fail_shard, finish_shard, renew_lease

pytestmark = pytest.mark.usefixtures("long_up")
ERROR = {"code": "boom", "message": "it broke"}


def submit(session: Session, shards: int = 2, job_id: uuid.UUID | None = None) -> Job:
    job, _ = submit_job(
        session,
        JobKind.generate,
        {"n": 1},
        [NewShard({"start": i}) for i in range(shards)],
        job_id=job_id or uuid.uuid4(),
    )
    return job


def claim(session: Session, job: Job, worker: str = "w", lease: float = 30) -> Claim | None:
    return claim_shard(session, job.id, worker=worker, lease_seconds=lease, max_attempts=3)


def must_claim(session: Session, job: Job, worker: str = "w", lease: float = 30) -> Claim:
    taken = claim(session, job, worker, lease)
    assert taken is not None, "nothing to claim"
    return taken


def due(session: Session) -> list[uuid.UUID]:
    return [
        j.id
        for j in recovery.sweep(session, resend_after_seconds=15, lease_seconds=0, max_attempts=3)
    ]


def skip_delay(session: Session, job: Job) -> None:
    session.execute(update(Shard).where(Shard.job_id == job.id).values(not_before=None))


def test_submitting_again_finds_the_job_and_another_body_is_a_conflict(session: Session) -> None:
    job = submit(session)
    again, is_new = submit_job(session, JobKind.generate, {"n": 1}, [], job_id=job.id)
    assert (again.id, is_new) == (job.id, False)
    with pytest.raises(Conflict):
        submit_job(session, JobKind.generate, {"n": 2}, [], job_id=job.id)
    with pytest.raises(Conflict):
        submit_job(session, JobKind.judge, {"n": 1}, [], job_id=job.id)


def test_the_last_shard_ends_the_job_and_results_add_up(session: Session) -> None:
    job = submit(session)
    first, second = must_claim(session, job), must_claim(session, job)
    assert claim(session, job) is None
    finish_shard(session, second, {"tokens": 3, "versions": {"vllm": "1"}})
    assert get_job(session, job.id).status is Status.running
    finish_shard(session, first, {"tokens": 4, "versions": {"vllm": "1"}})
    ended = get_job(session, job.id)
    assert ended.status is Status.succeeded
    assert ended.result == {"tokens": 7, "versions": {"vllm": "1"}}


def test_a_worker_whose_lease_ended_cannot_commit_over_its_successor(session: Session) -> None:
    job = submit(session, shards=1)
    late = must_claim(session, job, "late", lease=-1)
    successor = must_claim(session, job, "successor")
    assert successor.attempt == 2
    with pytest.raises(LeaseLost):
        finish_shard(session, late, {})
    with pytest.raises(LeaseLost):
        renew_lease(session, late, lease_seconds=30)
    with pytest.raises(LeaseLost):
        fail_shard(session, late, ERROR, max_attempts=3)
    finish_shard(session, successor, {})
    assert get_job(session, job.id).status is Status.succeeded


def test_a_worker_does_not_take_what_it_works_on(session: Session) -> None:
    job = submit(session, shards=1)
    mine = must_claim(session, job, lease=-1)
    held = [mine.shard_id]
    limits = {"lease_seconds": 30, "max_attempts": 3}
    assert claim_shard(session, job.id, worker="w", held=held, **limits) is None
    finish_shard(session, mine, {})


def test_three_failures_quarantine_the_shard_with_its_error(session: Session) -> None:
    job = submit(session)
    for attempt in (1, 2, 3):
        taken = must_claim(session, job)
        assert (taken.index, taken.attempt) == (0, attempt)
        fail_shard(session, taken, ERROR, max_attempts=3)
        skip_delay(session, job)
    ended = get_job(session, job.id)
    assert (ended.status, ended.error) == (Status.failed, ERROR)
    statuses = session.scalars(
        select(Shard.status).where(Shard.job_id == job.id).order_by(Shard.index)
    ).all()
    assert statuses == [Status.failed, Status.cancelled]


def test_a_retry_waits_and_an_error_that_cannot_be_retried_ends_at_once(session: Session) -> None:
    job = submit(session, shards=1)
    fail_shard(session, must_claim(session, job), ERROR, max_attempts=3)
    assert claim(session, job) is None, "taken again before its delay was over"
    other = submit(session, shards=1)
    fail_shard(session, must_claim(session, other), ERROR, max_attempts=3, retry=False)
    assert get_job(session, other.id).status is Status.failed


def test_a_shard_follows_the_one_it_depends_on(session: Session) -> None:
    upstream = submit(session, shards=2)
    ids = session.scalars(
        select(Shard.id).where(Shard.job_id == upstream.id).order_by(Shard.index)
    ).all()
    follower, _ = submit_job(
        session,
        JobKind.judge,
        {},
        [NewShard({}, after_shard_id=i) for i in ids],
        job_id=uuid.uuid4(),
    )
    assert claim(session, follower) is None
    assert follower.id not in due(session)
    finish_shard(session, must_claim(session, upstream), {})
    assert must_claim(session, follower).index == 0
    assert claim(session, follower) is None


def test_cancelling_takes_leases_away_and_repeats(session: Session) -> None:
    job = submit(session)
    taken = must_claim(session, job)
    assert cancel_job(session, job.id).status is Status.cancelled
    assert cancel_job(session, job.id).status is Status.cancelled
    with pytest.raises(LeaseLost):
        finish_shard(session, taken, {})
    assert claim(session, job) is None


def test_the_sweeper_sends_what_nobody_works_on(session: Session) -> None:
    job = submit(session, shards=1)
    assert job.id in due(session)
    assert job.id not in due(session), "sent twice within the delay"
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    session.execute(update(Job).where(Job.id == job.id).values(sent_at=long_ago))
    must_claim(session, job)
    assert job.id not in due(session), "sent although its only shard is leased"


def test_the_sweeper_quarantines_a_shard_that_killed_three_workers(session: Session) -> None:
    job = submit(session, shards=1)
    for _ in range(3):
        must_claim(session, job, lease=-1)
    assert claim(session, job) is None
    due(session)
    ended = get_job(session, job.id)
    assert ended.status is Status.failed
    assert ended.error is not None
    assert ended.error["code"] == "worker_lost"


def test_of_several_shards_that_killed_three_workers_one_ends_the_job(session: Session) -> None:
    job = submit(session)
    while claim(session, job, lease=-1):
        pass
    due(session)
    shards = session.scalars(select(Shard).where(Shard.job_id == job.id).order_by(Shard.index))
    ends = [(shard.status, shard.leases_lost) for shard in shards]
    assert ends == [(Status.failed, 3), (Status.cancelled, 3)]
    assert job.error is not None
    assert "shard 0" in job.error["message"]


def test_the_sweeper_waits_a_lease_after_postgres_was_away(session: Session) -> None:
    job = submit(session, shards=1)
    for _ in range(3):
        must_claim(session, job, lease=-1)
    # Longer ago than the server was started: the living have not had time to renew.
    recovery.sweep(session, resend_after_seconds=15, lease_seconds=1e9, max_attempts=3)
    assert get_job(session, job.id).status is Status.running


def test_a_dead_workers_shards_are_given_back_at_once(session: Session) -> None:
    job = submit(session)
    must_claim(session, job, "dead")
    other = must_claim(session, job, "alive")
    assert release_shards(session, job.id, "dead", ERROR, max_attempts=3) == 1
    skip_delay(session, job)
    assert must_claim(session, job).index == 0
    finish_shard(session, other, {})


def test_a_worker_that_dies_with_several_last_attempts_ends_the_job_once(session: Session) -> None:
    job = submit(session)
    for _ in range(2):
        must_claim(session, job)
        must_claim(session, job)
        release_shards(session, job.id, "w", ERROR, max_attempts=3)
        skip_delay(session, job)
    must_claim(session, job)
    must_claim(session, job)
    release_shards(session, job.id, "w", ERROR, max_attempts=3)
    ended = get_job(session, job.id)
    assert (ended.status, ended.error) == (Status.failed, ERROR)


def test_resuming_keeps_what_was_done(session: Session) -> None:
    job = submit(session)
    finish_shard(session, must_claim(session, job), {"tokens": 1})
    cancel_job(session, job.id)
    resume_job(session, job.id)
    finish_shard(session, must_claim(session, job), {"tokens": 2})
    ended = get_job(session, job.id)
    assert (ended.status, ended.result) == (Status.succeeded, {"tokens": 3})


def test_an_unknown_job_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        get_job(session, uuid.uuid4())


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_workers_at_once_take_each_shard_once(clean_database: Engine) -> None:
    with transaction() as session:
        job = submit(session, shards=40)
    done: list[int] = []

    def work() -> None:
        while True:
            with transaction() as session:
                taken = claim(session, job)
            if taken is None:
                return
            with transaction() as session:
                finish_shard(session, taken, {"n": 1})
            done.append(taken.index)

    in_threads(8, work)
    assert sorted(done) == list(range(40))
    with transaction() as session:
        ended = get_job(session, job.id)
        assert (ended.status, ended.result) == (Status.succeeded, {"n": 40})


def test_submitting_at_once_makes_one_job(clean_database: Engine) -> None:
    job_id, news = uuid.uuid4(), []

    def work() -> None:
        with transaction() as session:
            _, is_new = submit_job(session, JobKind.generate, {}, [NewShard({})] * 3, job_id=job_id)
        news.append(is_new)

    in_threads(8, work)
    assert sorted(news) == [False] * 7 + [True]
    with transaction() as session:
        assert len(session.scalars(select(Shard).where(Shard.job_id == job_id)).all()) == 3


def test_shards_of_one_job_may_be_finished_at_the_same_time(clean_database: Engine) -> None:
    with transaction() as session:
        job = submit(session)
        claims = [must_claim(session, job) for _ in range(2)]
    with Session(clean_database) as slow, transaction() as other:
        slow.execute(insert(Completion).values(_completion(claims[0])))  # refers to the job's row
        other.execute(text("SET LOCAL lock_timeout = '2s'"))
        other.execute(insert(Completion).values(_completion(claims[1])))
        finish_shard(other, claims[1], {})
        other.commit()
        finish_shard(slow, claims[0], {})
        slow.commit()
    with transaction() as session:
        assert get_job(session, job.id).status is Status.succeeded


def test_what_another_takes_over_meanwhile_is_not_given_back(clean_database: Engine) -> None:
    with transaction() as session:
        job = submit(session, shards=1)
        must_claim(session, job, "late", lease=-1)
    given_back: list[int] = []

    def give_back() -> None:
        with transaction() as session:
            given_back.append(
                release_shards(session, job.id, "late", ERROR, max_attempts=3, counts=False)
            )

    late = threading.Thread(target=give_back)
    with transaction() as session:
        successor = must_claim(session, job, "successor")
        late.start()
        late.join(timeout=0.5)  # it waits for the row
    late.join()
    assert given_back == [0]
    with transaction() as session:
        finish_shard(session, successor, {})


def test_a_shard_given_back_at_an_orderly_stop_costs_no_attempt(session: Session) -> None:
    job = submit(session, shards=1)
    for _ in range(5):
        taken = must_claim(session, job)
        assert release_shards(session, job.id, "w", ERROR, max_attempts=3, counts=False) == 1
        with pytest.raises(LeaseLost):
            finish_shard(session, taken, {})
    assert job.id in due(session)


def _completion(claim: Claim) -> dict[str, object]:
    counts = dict.fromkeys(("prompt_tokens", "thought_tokens", "response_tokens", "seed"), 0)
    return counts | {
        "job_id": claim.job_id,
        "shard_id": claim.shard_id,
        "prompt_index": claim.index,
        "sample_index": 0,
        "output": "",
        "truncated": False,
        "forced": False,
    }


@pytest.mark.parametrize("step", [None, "judge"])
def test_a_judge_of_responses_that_will_not_come_is_told_so(
    session: Session, step: str | None
) -> None:
    """An iteration's ends with it, and is resumed with it."""
    generate = submit(session, shards=1)
    shard = session.scalars(select(Shard).where(Shard.job_id == generate.id)).one()
    judge, _ = submit_job(
        session,
        JobKind.judge,
        {"generate_job_id": str(generate.id)},
        [NewShard({}, after_shard_id=shard.id)],
        job_id=uuid.uuid4(),
        step=step,
    )
    due(session)
    assert judge.status is Status.queued
    cancel_job(session, generate.id)
    due(session)
    assert judge.status is (Status.queued if step else Status.failed)
    assert step or (judge.error is not None and judge.error["code"] == "no_responses")


def test_a_resumed_job_does_not_end_with_an_error_of_before(session: Session) -> None:
    job = submit(session, shards=1)
    fail_shard(session, must_claim(session, job), ERROR, max_attempts=1)
    resume_job(session, job.id)
    for _ in range(3):
        must_claim(session, job, lease=-1)
    due(session)
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
