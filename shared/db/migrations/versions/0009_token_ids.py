"""Token ids of outputs, and of the prompts that they were sampled behind"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ids = postgresql.ARRAY(sa.Integer())
    op.add_column("completions", sa.Column("output_ids", ids, nullable=True))
    op.create_table(
        "sampled_prompts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_index", sa.Integer(), nullable=False),
        sa.Column("ids", ids, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_sampled_prompts_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "prompt_index", name=op.f("pk_sampled_prompts")),
    )
