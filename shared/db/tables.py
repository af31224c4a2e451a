"""The tables, with their enums beside them. Who writes which: `docs/architecture.md`."""

import enum
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        str: Text,
        datetime: DateTime(timezone=True),
        Json: JSONB,
        list[Json]: JSONB,
    }


class Status(enum.StrEnum):
    """Life of an iteration, a job or a shard."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (Status.succeeded, Status.failed, Status.cancelled)


UNFINISHED = (Status.queued, Status.running)


class JobKind(enum.StrEnum):
    generate = "generate"
    judge = "judge"
    train = "train"
    register = "register"
    """Fetch or convert a model's weights; runs on the train queue."""
    prune = "prune"
    """Delete what a pruned iteration has left; runs on the train queue, where models are."""


class Split(enum.StrEnum):
    train = "train"
    validation = "validation"


def _enum(cls: type[enum.Enum]) -> Enum:
    # Plain text that the database does not check: a new member takes no migration.
    return Enum(
        cls,
        native_enum=False,
        length=32,
        values_callable=lambda e: [m.value for m in e],
        create_constraint=False,
    )


StatusType = _enum(Status)


def _id() -> Mapped[uuid.UUID]:
    return mapped_column(primary_key=True, default=uuid.uuid4)


def _now() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


class Dataset(Base):
    __tablename__ = "datasets"

    id: Mapped[uuid.UUID] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    """`upload`, a file's path, `hf:<id>@<commit>?<columns and splits>`, or `inline`."""
    sha256: Mapped[str]
    """Of the canonical JSONL of its prompts."""
    created_at: Mapped[datetime] = _now()


class Prompt(Base):
    __tablename__ = "prompts"
    __table_args__ = (UniqueConstraint("dataset_id", "position"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    position: Mapped[int]
    split: Mapped[Split] = mapped_column(_enum(Split))
    text: Mapped[str]
    checks: Mapped[list[Json]] = mapped_column(server_default=sql("'[]'"))
    category: Mapped[str | None]


class Model(Base):
    """A model or a checkpoint; a checkpoint has no name until it is chosen."""

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("name", "version"),
        UniqueConstraint("job_id", "epoch"),
        CheckConstraint("(name IS NULL) = (version IS NULL)", name="named"),
    )

    id: Mapped[uuid.UUID] = _id()
    name: Mapped[str | None]
    version: Mapped[int | None]
    source: Mapped[str]
    """Where its weights came from: a Hub id, a folder, a GGUF file, or `train:<job>`."""
    path: Mapped[str | None]
    """Absolute folder of the weights; None until its register job has succeeded, and again once a
    checkpoint was pruned, whose hash stays."""
    weights_sha256: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of a checkpoint's folder."""
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"))
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    """The job that makes it: of kind train or register."""
    epoch: Mapped[int | None]
    thought_format: Mapped[Json | None]
    lineage: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    """iteration, judge, resolved config, seeds, versions of vllm, trl, torch, metrics."""
    created_at: Mapped[datetime] = _now()
    promoted_at: Mapped[datetime | None]
    """The model promoted last is the one that chat serves."""
    thought_budgets: Mapped[Json | None]
    """Chat's tokens of thought by effort, where its promotion has set them."""


class Iteration(Base):
    __tablename__ = "iterations"
    __table_args__ = (
        UniqueConstraint("run_id", "number"),
        Index(
            "ix_iterations_unfinished", "created_at", postgresql_where=sql("finished_at IS NULL")
        ),
    )

    id: Mapped[uuid.UUID] = _id()
    run_id: Mapped[uuid.UUID] = mapped_column(index=True)
    """The iterations of one POST; each begins when the one before has succeeded."""
    baseline_of: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """The run with thoughts whose direct baseline this one's run is."""
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
    """Counts of kept and dropped prompts once pairs are chosen."""
    report: Mapped[Json | None]
    timings: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    """Stage name -> seconds."""
    stage_started_at: Mapped[datetime | None]
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = _now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    traced_until: Mapped[datetime | None]
    """Its `finished_at` when its trace was exported; a resumed one has another, and is again."""
    pruned_at: Mapped[datetime | None]
    """From then on it cannot be resumed, and a job deletes what nothing needs of it."""


class IterationPrompt(Base):
    """Which prompts an iteration took; a run never takes a training prompt twice."""

    __tablename__ = "iteration_prompts"
    __table_args__ = (UniqueConstraint("iteration_id", "split", "position"),)

    iteration_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("iterations.id", ondelete="CASCADE"), primary_key=True
    )
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"), primary_key=True)
    split: Mapped[Split] = mapped_column(_enum(Split))
    position: Mapped[int]


class Job(Base):
    __tablename__ = "jobs"

    id: Mapped[uuid.UUID] = _id()
    kind: Mapped[JobKind] = mapped_column(_enum(JobKind))
    status: Mapped[Status] = mapped_column(StatusType, default=Status.queued, index=True)
    params: Mapped[Json]
    """The resolved request, as the service accepted it."""
    iteration_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """No foreign key: a job service works alone, without the coordinator's rows."""
    step: Mapped[str | None]
    error: Mapped[Json | None]
    result: Mapped[Json | None]
    sent_at: Mapped[datetime | None]
    """When a message was last sent for it; only a hint for the sweeper."""
    shards_done: Mapped[int] = mapped_column(server_default=sql("0"))
    """Kept as shards end, for metrics: adding shards up would read all of them each time."""
    shard_seconds: Mapped[float] = mapped_column(server_default=sql("0"))
    """From claim to commit, summed over the shards done."""
    tokens: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    """That models have written, or been trained on, in the shards done."""
    created_at: Mapped[datetime] = _now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Shard(Base):
    """A leased piece of a job. Every commit of a worker is conditional on `token`."""

    __tablename__ = "shards"
    __table_args__ = (
        UniqueConstraint("job_id", "index"),
        Index("ix_shards_leases_lost", "job_id", postgresql_where=sql("leases_lost > 0")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    index: Mapped[int]
    status: Mapped[Status] = mapped_column(StatusType, default=Status.queued, index=True)
    payload: Mapped[Json]
    """What to do: prompt ids or inline items."""
    after_shard_id: Mapped[int | None] = mapped_column(
        ForeignKey("shards.id", ondelete="CASCADE"), index=True
    )
    """A shard that must have succeeded first (judging follows generating shard by shard)."""
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    token: Mapped[uuid.UUID | None]
    lease_until: Mapped[datetime | None]
    leases_lost: Mapped[int] = mapped_column(server_default=sql("0"))
    """How often a lease of it ran out, and it was taken away from who held it."""
    not_before: Mapped[datetime | None]
    """Delay of a retry."""
    worker: Mapped[str | None]
    progress: Mapped[Json | None]
    result: Mapped[Json | None]
    error: Mapped[Json | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Completion(Base):
    __tablename__ = "completions"
    __table_args__ = (UniqueConstraint("job_id", "prompt_index", "sample_index"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"), index=True)
    prompt_id: Mapped[int | None] = mapped_column(index=True)
    prompt_index: Mapped[int]
    """Position of the prompt in its job."""
    sample_index: Mapped[int]
    output: Mapped[str]
    """Thought, marker and response, as trained on."""
    response_start: Mapped[int | None]
    """Offset in characters of the response in `output`; None where it does not parse."""
    prompt_tokens: Mapped[int]
    thought_tokens: Mapped[int]
    """Generated tokens up to and including the one that completes the response marker."""
    response_tokens: Mapped[int]
    truncated: Mapped[bool]
    """Ended by a token limit instead of the model's own end."""
    forced: Mapped[bool]
    """The response marker was put in for the model."""
    seed: Mapped[int] = mapped_column(BigInteger)

    @property
    def response(self) -> str | None:
        return None if self.response_start is None else self.output[self.response_start :]


class Judgment(Base):
    """One score for one response, of a completion or of an inline item."""

    __tablename__ = "judgments"
    __table_args__ = (
        UniqueConstraint("job_id", "completion_id"),
        UniqueConstraint("job_id", "item_index"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"))
    completion_id: Mapped[int | None] = mapped_column(
        ForeignKey("completions.id", ondelete="CASCADE"), index=True
    )
    item_index: Mapped[int | None]
    score: Mapped[float | None]
    """None where the judge gave none; `details["reason"]` says why."""
    judge: Mapped[str]
    """Kind and version, e.g. `verifier/1`."""
    details: Mapped[Json] = mapped_column(server_default=sql("'{}'"))


class JudgeAnswer(Base):
    """What a judge at another's address has answered: none is paid twice. Deleted when its job
    succeeds; of one that fails or is cancelled it stays until the iteration is pruned."""

    __tablename__ = "judge_answers"

    job_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    question_sha256: Mapped[str] = mapped_column(primary_key=True)
    answer: Mapped[Json]


class Pair(Base):
    __tablename__ = "pairs"
    __table_args__ = (UniqueConstraint("iteration_id", "prompt_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    iteration_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("iterations.id", ondelete="CASCADE"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"))
    # Indexed, or each completion that is deleted would be looked for in the whole table.
    chosen_id: Mapped[int] = mapped_column(ForeignKey("completions.id"), index=True)
    rejected_id: Mapped[int] = mapped_column(ForeignKey("completions.id"), index=True)
    chosen_score: Mapped[float]
    """Raw score of the judge, before length control."""
    rejected_score: Mapped[float | None]
    """None where the rejected output does not parse."""
    margin: Mapped[float | None]
    """Difference of the length-controlled scores."""


class Evaluation(Base):
    """A model scored on a run's validation prompts; each model once a run."""

    __tablename__ = "evaluations"

    run_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id"), primary_key=True)
    iteration_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("iterations.id", ondelete="CASCADE"))
    generate_job_id: Mapped[uuid.UUID]
    judge_job_id: Mapped[uuid.UUID]
    created_at: Mapped[datetime] = _now()


class Event(Base):
    """Append-only history of an iteration; its id is the id of the server-sent event."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    iteration_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("iterations.id", ondelete="CASCADE"), index=True
    )
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    created_at: Mapped[datetime] = _now()


class IdempotencyKey(Base):
    """The answer given to an `Idempotency-Key`, for a day."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    status: Mapped[int]
    response: Mapped[Json]
    created_at: Mapped[datetime] = _now()


class Scope(enum.StrEnum):
    """What an API key may do; `shared/auth/scopes.py` has the routes."""

    chat = "chat"
    iterate = "iterate"
    thoughts = "thoughts"
    """Beside `iterate`: what lists outputs shows their thoughts as well."""
    admin = "admin"


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = _id()
    name: Mapped[str]
    prefix: Mapped[str]
    """Its first characters, by which its owner knows it."""
    sha256: Mapped[str] = mapped_column(unique=True)
    """All that is kept of it."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    requests_per_minute: Mapped[int | None]
    concurrent_requests: Mapped[int | None]
    created_at: Mapped[datetime] = _now()
    revoked_at: Mapped[datetime | None]


class AuditEvent(Base):
    """Who did what; append-only, and never pruned."""

    __tablename__ = "audit_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    key_id: Mapped[uuid.UUID | None]
    """Whose key; None for the platform itself. No foreign key: a job service writes here, too."""
    action: Mapped[str]
    """`key.create`, `model.promote`, ..."""
    subject: Mapped[str]
    """What it was done to: an id, or a name."""
    data: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    request_id: Mapped[str | None]
    """As the log has it."""
    created_at: Mapped[datetime] = _now()


class Serving(Base):
    """What the inference process serves; chat reads it, one row an engine."""

    __tablename__ = "serving"

    engine_url: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"))
    state: Mapped[str]
    """`starting`, `swapping`, `ready` or `failed`."""
    detail: Mapped[str] = mapped_column(default="")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
