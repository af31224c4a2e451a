"""The database of a finished demo, dumped at migration 0007: every later migration upgrades it, and
its report, pairs, outputs, resume and promotion work."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from services.coordinator.app import app as coordinator
from services.train.app import app as train
from shared.db import engine as db
from shared.db.migrate import upgrade
from tests.support import access

DUMP = Path(__file__).parent / "demo.sql"
TABLES = ("jobs", "shards", "completions", "judgments", "pairs", "iterations", "models")
WRONG_TOTALS = """
    SELECT count(*) FROM jobs
    WHERE shards_total <> (SELECT count(*) FROM shards WHERE shards.job_id = jobs.id)
"""


def counts(connection: Connection) -> dict[str, int]:
    return {t: connection.scalar(text(f"SELECT count(*) FROM {t}")) or 0 for t in TABLES}


@pytest.fixture(scope="module")
def demo(engine: Engine, redis_url: str) -> Iterator[Engine]:
    """The upgraded database, to which the applications are connected."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE finished_demo"))
    url = engine.url.set(database="finished_demo").render_as_string(hide_password=False)
    with psycopg.connect(db.libpq_url(url), autocommit=True) as restored:
        restored.execute(DUMP.read_bytes())
    demo = create_engine(url)
    with demo.connect() as connection:
        before = counts(connection)
    upgrade(url)
    with demo.connect() as connection:
        assert counts(connection) == before
        assert all(before.values()), before
    sessions = sessionmaker(demo, expire_on_commit=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "_factory", lambda: sessions)
        yield demo
    demo.dispose()


@pytest.fixture
def client(demo: Engine) -> TestClient:
    return access.client(coordinator)


def iterations(client: TestClient) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = client.get("/iterations").json()["data"]
    return sorted(listed, key=lambda row: str(row["number"]))


def test_a_job_has_the_number_of_its_shards(demo: Engine) -> None:
    with demo.connect() as connection:
        assert connection.scalar(text(WRONG_TOTALS)) == 0


def test_reports_are_read_and_shown(client: TestClient) -> None:
    for iteration in iterations(client):
        url = f"/iterations/{iteration['id']}/report"
        report = client.get(url)
        assert report.status_code == 200, report.text
        assert report.json()["validation"]["vs_seed"]["n"] == 48
        page = client.get(f"{url}.html")
        assert page.status_code == 200, page.text
        assert "pairs" in page.text
    run = f"/runs/{iteration['run_id']}/report"
    assert len(client.get(run).json()["iterations"]) == 2
    assert client.get(f"{run}.html").status_code == 200


def test_pairs_and_outputs_are_listed(client: TestClient) -> None:
    first, second = iterations(client)
    for path, total in (("pairs", 60), ("completions", 256)):
        pages = [
            client.get(f"/iterations/{i['id']}/{path}?limit=1000").json() for i in (first, second)
        ]
        assert sum(len(page["data"]) for page in pages) == total


def test_a_model_is_promoted(demo: Engine) -> None:
    promoted = access.client(train).post("/models/demo@v1/promote")
    assert promoted.status_code == 200, promoted.text
    with demo.connect() as connection:
        newest = "SELECT version FROM models WHERE promoted_at IS NOT NULL ORDER BY promoted_at"
        assert connection.scalars(text(newest)).all()[-1] == 1


def test_a_failed_iteration_is_resumed(demo: Engine, client: TestClient) -> None:
    second = iterations(client)[-1]
    with demo.begin() as connection:
        failed = (
            "UPDATE iterations SET status = 'failed', error = '{\"message\": \"x\"}' WHERE id = :id"
        )
        connection.execute(text(failed), {"id": second["id"]})
    resumed = client.post(f"/iterations/{second['id']}/resume")
    assert resumed.status_code == 202, resumed.text
    assert (resumed.json()["status"], resumed.json()["error"]) == ("running", None)
