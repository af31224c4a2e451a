"""The model registry."""

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, Json, created_now, uuid_key


class Model(Base):
    """A model or a checkpoint; a checkpoint has no name until it is chosen."""

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("name", "version"),
        UniqueConstraint("job_id", "epoch"),
        CheckConstraint("(name IS NULL) = (version IS NULL)", name="named"),
    )

    id: Mapped[uuid.UUID] = uuid_key()
    name: Mapped[str | None]
    version: Mapped[int | None]
    source: Mapped[str]
    """Origin of its weights: a Hub id, a folder, a GGUF file, or `train:<job>`."""
    path: Mapped[str | None]
    """Absolute folder of the weights. None until its register job has succeeded, and again after a
    checkpoint was pruned; the hash of its weights stays."""
    weights_sha256: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Size of a checkpoint's folder."""
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"))
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    """The job that makes it, of kind train or register."""
    epoch: Mapped[int | None]
    thought_format: Mapped[Json | None]
    lineage: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    """Iteration, judge, resolved config, seeds, versions of vllm, trl and torch, and metrics."""
    created_at: Mapped[datetime] = created_now()
    promoted_at: Mapped[datetime | None]
    """Chat serves the model that was promoted last."""
    thought_budgets: Mapped[Json | None]
    """Maximum thought tokens of chat by effort; None for the defaults."""
