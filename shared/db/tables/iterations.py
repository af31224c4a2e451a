"""Iterations: their prompts, pairs, evaluations and history."""

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import (
    Base,
    Json,
    Split,
    Status,
    StatusType,
    created_now,
    enum_type,
    uuid_key,
)


class Iteration(Base):
    __tablename__ = "iterations"
    __table_args__ = (
        UniqueConstraint("run_id", "number"),
        Index(None, "created_at", "id"),
        Index(
            "ix_iterations_unfinished", "created_at", postgresql_where=sql("finished_at IS NULL")
        ),
    )

    id: Mapped[uuid.UUID] = uuid_key()
    run_id: Mapped[uuid.UUID] = mapped_column(index=True)
    """Common to the iterations of one POST; each begins when the one before it has succeeded."""
    baseline_of: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """The run with thoughts that this one is the direct baseline of."""
    number: Mapped[int]
    """1, 2, … in its run."""
    status: Mapped[Status] = mapped_column(StatusType, default=Status.queued)
    stage: Mapped[str] = mapped_column(default="queued")
    config: Mapped[Json]
    """The resolved request."""
    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id"))
    seed_model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id"))
    """The model that the run began with."""
    parent_model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"))
    """The model that this iteration trains; known when it starts."""
    result_model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"))
    pairing: Mapped[Json | None]
    """Counts of kept and dropped prompts, once pairs are chosen."""
    report: Mapped[Json | None]
    timings: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    """Seconds by name of stage."""
    stage_started_at: Mapped[datetime | None]
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = created_now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    traced_until: Mapped[datetime | None]
    """The `finished_at` for which its trace was exported. A resumed iteration ends at another time,
    and is exported again."""
    pruned_at: Mapped[datetime | None]
    """From this time on it cannot be resumed, and a job deletes what nothing needs of it."""


class IterationPrompt(Base):
    """A prompt that an iteration took; a run never takes a training prompt twice."""

    __tablename__ = "iteration_prompts"
    __table_args__ = (UniqueConstraint("iteration_id", "split", "position"),)

    iteration_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("iterations.id", ondelete="CASCADE"), primary_key=True
    )
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"), primary_key=True)
    split: Mapped[Split] = mapped_column(enum_type(Split))
    position: Mapped[int]


class Pair(Base):
    """The chosen and the rejected output for one prompt of an iteration."""

    __tablename__ = "pairs"
    __table_args__ = (
        UniqueConstraint("iteration_id", "prompt_id"),
        Index(None, "iteration_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    iteration_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("iterations.id", ondelete="CASCADE"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"))
    # Indexed, because deleting a completion looks here for references to it.
    chosen_id: Mapped[int] = mapped_column(ForeignKey("completions.id"), index=True)
    rejected_id: Mapped[int] = mapped_column(ForeignKey("completions.id"), index=True)
    chosen_score: Mapped[float]
    """Raw score of the judge, before length control."""
    rejected_score: Mapped[float | None]
    """None if the rejected output does not parse."""
    margin: Mapped[float | None]
    """Difference of the length-controlled scores."""


class Evaluation(Base):
    """Scores of a model on a run's validation prompts; each model has at most one in a run."""

    __tablename__ = "evaluations"

    run_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id"), primary_key=True)
    iteration_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("iterations.id", ondelete="CASCADE"))
    generate_job_id: Mapped[uuid.UUID]
    judge_job_id: Mapped[uuid.UUID]
    created_at: Mapped[datetime] = created_now()


class Event(Base):
    """Append-only history of an iteration; its id is the id of the server-sent event."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "iteration_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    iteration_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("iterations.id", ondelete="CASCADE"))
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    created_at: Mapped[datetime] = created_now()
