"""A database of a finished demo, dumped at migration 0007, is upgraded by every later migration."""

from pathlib import Path

import psycopg
from sqlalchemy import Engine, create_engine, text

from shared.db.engine import libpq_url
from shared.db.migrate import upgrade

DUMP = Path(__file__).parent / "demo.sql"
COUNTS = """
    SELECT count(*) FROM jobs
    WHERE shards_total <> (SELECT count(*) FROM shards WHERE shards.job_id = jobs.id)
"""


def test_the_migrations_upgrade_it_and_keep_its_rows(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE finished_demo"))
    url = engine.url.set(database="finished_demo").render_as_string(hide_password=False)
    with psycopg.connect(libpq_url(url), autocommit=True) as restored:
        restored.execute(DUMP.read_bytes())
    demo = create_engine(url)
    tables = ("jobs", "shards", "completions", "judgments", "pairs", "iterations", "models")

    def rows() -> dict[str, int]:
        with demo.connect() as connection:
            return {
                table: connection.scalar(text(f"SELECT count(*) FROM {table}")) for table in tables
            }

    before = rows()
    upgrade(url)
    assert rows() == before
    assert all(before.values()), before
    with demo.connect() as connection:
        assert connection.scalar(text(COUNTS)) == 0, "jobs with a wrong number of shards"
    demo.dispose()
