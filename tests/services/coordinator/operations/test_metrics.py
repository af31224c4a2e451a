"""What the record says to Prometheus, on real rows."""

import uuid
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from services.coordinator.operations import metrics as record_metrics
from services.coordinator.operations.metrics import Record, figures
from shared.db import engine as db
from shared.db.engine import transaction
from shared.db.tables import Job, JobKind, Shard
from shared.jobs import recovery
from shared.jobs.job import NewShard, submit_job
from shared.jobs.shards import Claim, claim_shard, fail_shard, finish_shard, hand_back_shard
from shared.settings import get_settings

Values = dict[tuple[str, ...], float]


def values(session: Session) -> Values:
    """Value by sample's name and labels."""
    session.flush()
    return {
        (sample.name.removeprefix("forethought_"), *sample.labels.values()): sample.value
        for family in figures(session)
        for sample in family.samples
    }


def submit(session: Session, kind: JobKind, *after: int | None) -> Job:
    new = [NewShard({}, id_) for id_ in after]
    return submit_job(session, kind, {}, new, job_id=uuid.uuid4())[0]


def claim(session: Session, job: Job, lease: float = 30) -> Claim:
    taken = claim_shard(session, job.id, worker="w", lease_seconds=lease, max_attempts=3)
    assert taken is not None
    return taken


def test_the_queue_is_counted_by_what_it_waits_for(session: Session) -> None:
    first = submit(session, JobKind.generate, None, None)
    upstream = session.scalars(select(Shard.id).where(Shard.job_id == first.id)).all()
    submit(session, JobKind.judge, *upstream)
    claim(session, first)
    assert {key: n for key, n in values(session).items() if key[0] == "shards" and n} == {
        ("shards", "generate", "running"): 1,
        ("shards", "generate", "queued"): 1,
        ("shards", "judge", "waiting"): 2,
    }


def test_a_shard_that_ends_is_counted_with_its_seconds_and_tokens(session: Session) -> None:
    job = submit(session, JobKind.generate, None, None)
    for tokens in (30, 12):
        held = claim(session, job)
        # Its end is Postgres's now(), which is when this test began.
        begun = func.now() - timedelta(seconds=5)
        session.execute(update(Shard).where(Shard.id == held.shard_id).values(started_at=begun))
        finish_shard(session, held, {"tokens": tokens})
    found = values(session)
    assert found["tokens_total", "generate"] == 42
    assert found["shard_seconds_count", "generate"] == 2
    assert found["jobs", "generate", "succeeded"] == 1
    assert found["shard_seconds_sum", "generate"] == pytest.approx(10)
    assert found["shards", "generate", "queued"] == 0


def test_tokens_of_a_judge_that_is_a_chat_model_count(session: Session) -> None:
    job = submit(session, JobKind.judge, None)
    finish_shard(session, claim(session, job), {"completion_tokens": 7, "prompt_tokens": 100})
    assert values(session)["tokens_total", "judge"] == 7


def test_a_lease_is_lost_when_another_takes_the_shard_and_at_the_last_attempt(
    session: Session,
) -> None:
    job = submit(session, JobKind.train, None)
    for _ in range(3):
        claim(session, job, lease=-1)
    assert values(session)["leases_lost_total", "train"] == 2
    recovery.sweep(session, resend_after_seconds=15, lease_seconds=0, max_attempts=3)
    found = values(session)
    assert found["leases_lost_total", "train"] == 3
    assert found["jobs", "train", "failed"] == 1


def test_what_is_handed_back_or_failed_is_no_lost_lease(session: Session) -> None:
    job = submit(session, JobKind.train, None, None)
    hand_back_shard(session, claim(session, job), {})
    fail_shard(session, claim(session, job), {"code": "x"}, max_attempts=3)
    assert values(session)["leases_lost_total", "train"] == 0


class TestRecord:
    @pytest.fixture
    def registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(Record())  # asks no database: there may be none yet
        return registry

    def test_it_is_read_once_in_a_while(
        self,
        clean_database: Engine,
        registry: CollectorRegistry,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def queued() -> float | None:
            labels = {"kind": "prune", "status": "queued"}
            return registry.get_sample_value("forethought_shards", labels)

        assert queued() == 0
        with transaction() as session:
            submit(session, JobKind.prune, None)
        assert queued() == 0
        monkeypatch.setattr(record_metrics, "AGE_SECONDS", 0.0)
        assert queued() == 1

    def test_a_database_that_is_away_is_said_and_no_old_figure_shown(
        self, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORETHOUGHT_DATABASE_URL", "postgresql+psycopg://a@127.0.0.1:1/b")
        get_settings.cache_clear()
        db.failfast_engine().dispose()
        db.failfast_engine.cache_clear()
        try:
            shown = {sample.name for family in registry.collect() for sample in family.samples}
            assert registry.get_sample_value("forethought_record_up") == 0
            assert shown == {"forethought_record_up"}
        finally:
            monkeypatch.undo()
            get_settings.cache_clear()
            db.failfast_engine.cache_clear()
