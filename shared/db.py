"""Engine, transactions and notifications. One request or one shard is one transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from shared.settings import get_settings

CHANNEL = "forethought"
"""LISTEN/NOTIFY channel; a notification only wakes a waiter, its payload says what changed."""


@cache
def get_engine() -> Engine:
    # hide_parameters: an error's text must not carry prompts or thoughts into a log.
    return create_engine(
        get_settings().database_url, pool_pre_ping=True, pool_size=10, hide_parameters=True
    )


@cache
def _factory() -> sessionmaker[Session]:
    return sessionmaker(get_engine(), expire_on_commit=False)


@contextmanager
def transaction() -> Iterator[Session]:
    """A session that commits at the end of the block and rolls back on an exception."""
    with _factory().begin() as session:
        yield session


def _session() -> Iterator[Session]:
    with transaction() as session:
        yield session


SessionDep = Annotated[Session, Depends(_session, scope="function")]
"""Committed before the response is sent, so a client can read what it wrote."""


def notify(session: Session, payload: str) -> None:
    """Wake whoever listens, when and only if this transaction commits."""
    session.execute(text("SELECT pg_notify(:c, :p)"), {"c": CHANNEL, "p": payload})
