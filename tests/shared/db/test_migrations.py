"""The migrations make exactly the tables that the models describe."""

from alembic import command
from sqlalchemy import Engine, create_engine, text

from shared.db.migrate import alembic_config


def test_no_table_or_column_differs(postgres_url: str) -> None:
    command.check(alembic_config(postgres_url))


def test_what_was_done_before_metrics_is_counted(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE before_metrics"))
    url = engine.url.set(database="before_metrics").render_as_string(hide_password=False)
    config = alembic_config(url)
    command.upgrade(config, "0005")
    other = create_engine(url)
    with other.begin() as connection:
        connection.execute(text(DONE))
    command.upgrade(config, "0008")
    with other.connect() as connection:
        counted = connection.execute(
            text("SELECT shards_done, shards_total, shard_seconds, tokens FROM jobs ORDER BY kind")
        )
        assert [tuple(row) for row in counted] == [(2, 3, 15.0, 42), (1, 1, 5.0, 7), (0, 0, 0.0, 0)]
    other.dispose()


DONE = """
    INSERT INTO jobs (id, kind, status, params) VALUES
        ('00000000-0000-0000-0000-000000000001', 'generate', 'running', '{}'),
        ('00000000-0000-0000-0000-000000000002', 'judge', 'succeeded', '{}'),
        ('00000000-0000-0000-0000-000000000003', 'train', 'queued', '{}');
    INSERT INTO shards (job_id, index, status, attempt, payload, result, started_at, finished_at)
    SELECT ('00000000-0000-0000-0000-00000000000' || job)::uuid, index, status, 1, '{}',
        result::jsonb, now() - seconds * interval '1 second', now()
    FROM (VALUES
        (1, 0, 'succeeded', '{"tokens": 30}', 5),
        (1, 1, 'succeeded', '{"tokens": 12}', 10),
        (1, 2, 'running', NULL, 3),
        (2, 0, 'succeeded', '{"completion_tokens": 7, "prompt_tokens": 9}', 5)
    ) AS given (job, index, status, result, seconds)
"""
