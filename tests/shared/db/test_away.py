"""What a process does about servers that take a connection and never answer."""

import socket
import time
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from shared.db.engine import DB_UNAVAILABLE, is_away
from shared.db.tables import JobKind
from shared.jobs import broker
from shared.jobs.job import NewShard, submit_job
from shared.jobs.shards import Claim, claim_shard
from shared.web.client import ServiceClient


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        yield int(server.getsockname()[1])


def test_a_broker_that_never_answers_is_away(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.celery.conf, "broker_read_url", f"redis://127.0.0.1:{silent}/0")
    started = time.monotonic()
    with pytest.raises(Exception, match=r"(?i)time"):
        broker.ping()
    assert time.monotonic() - started < 6


def test_the_living_keep_their_shards_for_a_lease_after_postgres_was_away(session: Session) -> None:
    new, started = [NewShard({})], uuid.uuid4()
    job, _ = submit_job(session, JobKind.generate, {}, new, job_id=started)

    def claim(worker: str, lease_seconds: float) -> Claim | None:
        return claim_shard(
            session, job.id, worker=worker, lease_seconds=lease_seconds, max_attempts=3
        )

    assert claim("a", -1) is not None
    since_the_start_of_postgres = 1e6
    assert claim("b", since_the_start_of_postgres) is None
    assert claim("b", 0) is not None


def test_a_database_with_no_connection_free_is_away(postgres_url: str) -> None:
    small = create_engine(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with small.connect(), pytest.raises(DB_UNAVAILABLE) as raised:
        small.connect()
    assert is_away(raised.value)
    small.dispose()


def test_no_proxy_of_the_environment_sees_the_service_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ServiceClient("http://generate:8000", "key")._http.trust_env is False
