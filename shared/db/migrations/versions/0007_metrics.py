"""Counters for metrics, kept where shards end; which iterations' traces were exported"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNT_WHAT_IS_THERE = """
    UPDATE jobs
    SET shards_done = done.shards, shard_seconds = done.seconds, tokens = done.tokens
    FROM (
        SELECT job_id, count(*) AS shards,
            coalesce(sum(greatest(0, extract(epoch FROM finished_at - started_at))), 0) AS seconds,
            coalesce(sum(coalesce(result->>'tokens', result->>'completion_tokens')::numeric), 0)
                AS tokens
        FROM shards WHERE status = 'succeeded' GROUP BY job_id
    ) AS done
    WHERE done.job_id = jobs.id
"""


def upgrade() -> None:
    for name, type_ in (
        ("shards_done", sa.Integer()),
        ("shard_seconds", sa.Float()),
        ("tokens", sa.BigInteger()),
    ):
        op.add_column("jobs", sa.Column(name, type_, server_default="0", nullable=False))
    op.execute(COUNT_WHAT_IS_THERE)
    op.add_column(
        "shards", sa.Column("leases_lost", sa.Integer(), server_default="0", nullable=False)
    )
    op.create_index(
        "ix_shards_leases_lost", "shards", ["job_id"], postgresql_where=sa.text("leases_lost > 0")
    )
    op.add_column(
        "iterations", sa.Column("traced_until", sa.DateTime(timezone=True), nullable=True)
    )
