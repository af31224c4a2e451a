"""Judges that may give no score, or are paid for each answer"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("judgments", "score", existing_type=sa.Float(), nullable=True)
    op.create_table(
        "judge_answers",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("question_sha256", sa.Text(), nullable=False),
        sa.Column("answer", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "question_sha256"),
    )
