"""Bulk results of jobs: completions and their judgments."""

import uuid

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Integer, UniqueConstraint
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, Json


class Completion(Base):
    __tablename__ = "completions"
    __table_args__ = (
        UniqueConstraint("job_id", "prompt_index", "sample_index"),
        Index(None, "job_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"), index=True)
    prompt_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    prompt_index: Mapped[int]
    """Position of the prompt in its job."""
    sample_index: Mapped[int]
    output: Mapped[str]
    """Thought, marker and response as text; `output_ids` is what is trained on."""
    response_start: Mapped[int | None]
    """Offset in characters of the response in `output`; None if the output does not parse."""
    prompt_tokens: Mapped[int]
    thought_tokens: Mapped[int]
    """Generated tokens up to and including the one that completes the response marker."""
    response_tokens: Mapped[int]
    truncated: Mapped[bool]
    """Ended by a token limit instead of the model's own end."""
    forced: Mapped[bool]
    """The response marker was put in for the model."""
    seed: Mapped[int] = mapped_column(BigInteger)
    output_ids: Mapped[list[int] | None] = mapped_column(ARRAY(Integer), deferred=True)
    """All tokens behind the prompt, put in or generated; None in rows older than this column."""

    @property
    def response(self) -> str | None:
        return None if self.response_start is None else self.output[self.response_start :]


class SampledPrompt(Base):
    """Tokens of the prompt that completions were sampled behind, once for all of them."""

    __tablename__ = "sampled_prompts"

    job_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    prompt_index: Mapped[int] = mapped_column(primary_key=True)
    ids: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class Judgment(Base):
    """One score for one response, of a completion or of an inline item."""

    __tablename__ = "judgments"
    __table_args__ = (
        UniqueConstraint("job_id", "completion_id"),
        UniqueConstraint("job_id", "item_index"),
        Index(None, "job_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"), index=True)
    completion_id: Mapped[int | None] = mapped_column(
        ForeignKey("completions.id", ondelete="CASCADE"), index=True
    )
    item_index: Mapped[int | None]
    score: Mapped[float | None]
    """None if the judge gave no score; `details["reason"]` says why."""
    judge: Mapped[str]
    """Kind and version, e.g. `verifier/1`."""
    details: Mapped[Json] = mapped_column(server_default=sql("'{}'"))


class JudgeAnswer(Base):
    """An answer of a judge that is paid for by the question, kept so that it is asked only once.

    Deleted when its job succeeds. If the job fails or is cancelled, it stays until the iteration is
    pruned.
    """

    __tablename__ = "judge_answers"

    job_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    question_sha256: Mapped[str] = mapped_column(primary_key=True)
    answer: Mapped[Json]
