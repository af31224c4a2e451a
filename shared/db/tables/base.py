"""The declarative base, and the types and enums that several tables share."""

import enum
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Enum, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB
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


class Split(enum.StrEnum):
    """Use of a prompt: to train with, or to validate with."""

    train = "train"
    validation = "validation"


def enum_type(cls: type[enum.Enum]) -> Enum:
    """Text that the database does not check, so that a new member needs no migration."""
    return Enum(
        cls,
        native_enum=False,
        length=32,
        values_callable=lambda e: [m.value for m in e],
        create_constraint=False,
    )


StatusType = enum_type(Status)


def uuid_key() -> Mapped[uuid.UUID]:
    """A random primary key."""
    return mapped_column(primary_key=True, default=uuid.uuid4)


def created_now() -> Mapped[datetime]:
    """The time at which the database inserts the row."""
    return mapped_column(server_default=func.now())
