"""Thought budgets of a served model"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "models",
        sa.Column("thought_budgets", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    )
