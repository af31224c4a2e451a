"""API keys, the audit trail, and the answers kept for idempotency keys."""

import enum
import uuid
from datetime import datetime

from sqlalchemy import BigInteger, Identity, Text
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, Json, created_now, uuid_key


class Scope(enum.StrEnum):
    """Permission of an API key; `shared/auth/scopes.py` lists the routes of each."""

    chat = "chat"
    iterate = "iterate"
    thoughts = "thoughts"
    """In addition to `iterate`: routes that list outputs show their thoughts as well."""
    admin = "admin"


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = uuid_key()
    name: Mapped[str]
    prefix: Mapped[str]
    """First characters of the key, by which its owner recognises it."""
    sha256: Mapped[str] = mapped_column(unique=True)
    """Hash of the key, which itself is not stored."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    requests_per_minute: Mapped[int | None]
    concurrent_requests: Mapped[int | None]
    created_at: Mapped[datetime] = created_now()
    revoked_at: Mapped[datetime | None]


class AuditEvent(Base):
    """An action and the key that did it; append-only, and never pruned."""

    __tablename__ = "audit_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    key_id: Mapped[uuid.UUID | None]
    """None for the platform itself. No foreign key: the job services write here as well."""
    action: Mapped[str]
    """`key.create`, `model.promote`, ..."""
    subject: Mapped[str]
    """Id or name of the object of the action."""
    data: Mapped[Json] = mapped_column(server_default=sql("'{}'"))
    request_id: Mapped[str | None]
    """The same id as in the log."""
    created_at: Mapped[datetime] = created_now()


class IdempotencyKey(Base):
    """The answer given to an `Idempotency-Key`, kept for a day."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    status: Mapped[int]
    response: Mapped[Json]
    created_at: Mapped[datetime] = created_now()
