"""Indexes for pages and claims; the number of a job's shards; room for more prompts than 2^31"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COUNT_SHARDS = """
    UPDATE jobs SET shards_total = counted.shards
    FROM (SELECT job_id, count(*) AS shards FROM shards GROUP BY job_id) AS counted
    WHERE counted.job_id = jobs.id
"""
PAGES = (
    ("jobs", "created_at"),
    ("iterations", "created_at"),
    ("completions", "job_id"),
    ("judgments", "job_id"),
    ("pairs", "iteration_id"),
    ("events", "iteration_id"),
)


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("shards_total", sa.Integer(), server_default="0", nullable=False)
    )
    op.execute(COUNT_SHARDS)
    op.alter_column("completions", "prompt_id", type_=sa.BigInteger())
    for table, column in PAGES:
        op.create_index(f"ix_{table}_{column}_id", table, [column, "id"])
    op.drop_index("ix_events_iteration_id", "events")
    op.create_index("ix_judgments_shard_id", "judgments", ["shard_id"])
    op.create_index(
        "ix_shards_unfinished",
        "shards",
        ["job_id", "index"],
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_shards_running", "shards", ["job_id"], postgresql_where=sa.text("status = 'running'")
    )
    op.create_index("ix_shards_started", "shards", ["job_id", "started_at"])
    op.drop_index("ix_shards_status", "shards")
