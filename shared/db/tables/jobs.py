"""Jobs and their shards."""

import enum
import uuid
from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Integer, UniqueConstraint, select
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, column_property, mapped_column

from shared.db.tables.base import (
    Base,
    Json,
    Status,
    StatusType,
    created_now,
    enum_type,
    uuid_key,
)


class JobKind(enum.StrEnum):
    generate = "generate"
    judge = "judge"
    train = "train"
    register = "register"
    """Fetch or convert a model's weights; runs on the train queue."""
    prune = "prune"
    """Delete the data of a pruned iteration; runs on the train queue, where the models are."""


class Shard(Base):
    """A leased piece of a job. Every commit of a worker is conditional on `token`."""

    __tablename__ = "shards"
    __table_args__ = (
        UniqueConstraint("job_id", "index"),
        Index(
            "ix_shards_unfinished",
            "job_id",
            "index",
            postgresql_where=sql("status IN ('queued', 'running')"),
        ),
        Index("ix_shards_running", "job_id", postgresql_where=sql("status = 'running'")),
        Index("ix_shards_started", "job_id", "started_at"),
        Index("ix_shards_leases_lost", "job_id", postgresql_where=sql("leases_lost > 0")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    index: Mapped[int]
    status: Mapped[Status] = mapped_column(StatusType, default=Status.queued)
    payload: Mapped[Json]
    """The work: prompt ids or inline items."""
    after_shard_id: Mapped[int | None] = mapped_column(
        ForeignKey("shards.id", ondelete="CASCADE"), index=True
    )
    """A shard that must have succeeded first (judging follows generating shard by shard)."""
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    token: Mapped[uuid.UUID | None]
    lease_until: Mapped[datetime | None]
    leases_lost: Mapped[int] = mapped_column(server_default=sql("0"))
    """Number of times that a lease ran out and the shard was taken away from its worker."""
    not_before: Mapped[datetime | None]
    """End of the delay before a retry."""
    worker: Mapped[str | None]
    progress: Mapped[Json | None]
    result: Mapped[Json | None]
    error: Mapped[Json | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[uuid.UUID] = uuid_key()
    kind: Mapped[JobKind] = mapped_column(enum_type(JobKind))
    status: Mapped[Status] = mapped_column(StatusType, default=Status.queued, index=True)
    params: Mapped[Json]
    """The resolved request, as the service accepted it."""
    iteration_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """No foreign key: a job service works alone, without the coordinator's rows."""
    step: Mapped[str | None]
    error: Mapped[Json | None]
    result: Mapped[Json | None]
    sent_at: Mapped[datetime | None]
    """Time at which a message was last sent for it; only a hint for the sweeper."""
    shards_total: Mapped[int] = mapped_column(server_default=sql("0"))
    shards_done: Mapped[int] = mapped_column(server_default=sql("0"))
    """Counted as shards end: counting the rows would read all of them each time."""
    shard_seconds: Mapped[float] = mapped_column(server_default=sql("0"))
    """Seconds from claim to commit, summed over the shards done."""
    tokens: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    """Tokens that models have written, or been trained on, in the shards done."""
    created_at: Mapped[datetime] = created_now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    latest_progress: Mapped[Json | None] = column_property(
        select(Shard.progress)
        .where(Shard.job_id == id, Shard.started_at.is_not(None))
        .order_by(Shard.started_at.desc())
        .limit(1)
        .correlate_except(Shard)
        .scalar_subquery(),
        deferred=True,
    )
    """Progress of the shard that began last."""

    @property
    def progress(self) -> Json:
        """Shards and tokens done. A list of jobs undefers `latest_progress` to read it at once."""
        return {
            "done": self.shards_done,
            "total": self.shards_total,
            "tokens": self.tokens,
            "shard": self.latest_progress,
        }
