"""Datasets and their prompts."""

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity, UniqueConstraint
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, Json, Split, created_now, enum_type, uuid_key


class Dataset(Base):
    __tablename__ = "datasets"

    id: Mapped[uuid.UUID] = uuid_key()
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    """`upload`, a file's path, `hf:<id>@<commit>?<columns and splits>`, or `inline`."""
    sha256: Mapped[str]
    """Hash of the canonical JSONL of its prompts."""
    created_at: Mapped[datetime] = created_now()


class Prompt(Base):
    __tablename__ = "prompts"
    __table_args__ = (UniqueConstraint("dataset_id", "position"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    position: Mapped[int]
    split: Mapped[Split] = mapped_column(enum_type(Split))
    text: Mapped[str]
    checks: Mapped[list[Json]] = mapped_column(server_default=sql("'[]'"))
    category: Mapped[str | None]
