"""Runs that are the direct baseline of another"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("iterations", sa.Column("baseline_of", sa.Uuid(), nullable=True))
    op.create_index("ix_iterations_baseline_of", "iterations", ["baseline_of"])
