"""Retention: when an iteration was pruned, how large a checkpoint is"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("iterations", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("models", sa.Column("size_bytes", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_pairs_chosen_id"), "pairs", ["chosen_id"], unique=False)
    op.create_index(op.f("ix_pairs_rejected_id"), "pairs", ["rejected_id"], unique=False)
