"""Engine, transactions and notifications. One request or one shard is one transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ParamSpec, TypeVar

import psycopg
import stamina
from psycopg.errors import DiskFull
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import Session, sessionmaker

from shared.settings import get_settings

AWAY_SECONDS = 600.0
"""How long a worker keeps work that is done while the database is away."""
FROZEN_MS = 120_000
"""A process that was suspended in a transaction must not hold its locks for ever."""
DB_UNAVAILABLE = (OperationalError, InterfaceError, NoConnectionFree)
"""What SQLAlchemy raises where Postgres is away, has no disk left, or so slow that no connection
gets free."""
AWAY_AFTER_SECONDS = 3
SILENT_SECONDS = 10
"""A server whose machine is gone sends nothing at all, and no error."""
CHANNEL = "forethought"
"""LISTEN/NOTIFY channel; a notification only wakes a waiter, its payload says what changed."""


P = ParamSpec("P")
T = TypeVar("T")


@cache
def get_engine() -> Engine:
    return _create(SILENT_SECONDS, pool_pre_ping=True, pool_size=10, pool_timeout=SILENT_SECONDS)


@cache
def failfast_engine() -> Engine:
    """For who must neither queue for a connection nor wait long for a server that is gone or slow.
    One connection is kept, so that a server which takes no more of them still answers."""
    limit = f"-c statement_timeout={AWAY_AFTER_SECONDS * 1000}"
    return _create(AWAY_AFTER_SECONDS, limit, pool_pre_ping=True, pool_size=1, max_overflow=-1)


def _create(silence: int, options: str = "", **pool: Any) -> Engine:
    """`silence` is in seconds, `options` are Postgres's own."""
    connection = {
        "connect_timeout": silence,
        "tcp_user_timeout": silence * 1000,
        "keepalives_idle": silence,
        "keepalives_interval": silence,
        "options": f"-c idle_in_transaction_session_timeout={FROZEN_MS} {options}",
    }
    # hide_parameters: an error's text must not carry prompts or thoughts into a log.
    return create_engine(
        get_settings().database_url, hide_parameters=True, connect_args=connection, **pool
    )


def libpq_url(url: str) -> str:
    """As libpq takes it: without SQLAlchemy's name of the driver."""
    return url.replace("+psycopg", "", 1)


def listen() -> "psycopg.Connection[Any]":
    """A connection that hears the notifications. Raises `psycopg.OperationalError`."""
    connection = psycopg.connect(libpq_url(get_settings().database_url), autocommit=True)
    connection.execute(f"LISTEN {CHANNEL}")
    return connection


@cache
def _factory() -> sessionmaker[Session]:
    return sessionmaker(get_engine(), expire_on_commit=False)


@contextmanager
def transaction() -> Iterator[Session]:
    """A session that commits at the end of the block and rolls back on an exception."""
    with _factory().begin() as session:
        yield session


def is_away(error: Exception) -> bool:
    """Whether Postgres could not be reached, or let go of the connection: try again."""
    return isinstance(error, DB_UNAVAILABLE) and not is_full(error)


def is_full(error: Exception) -> bool:
    """Whether Postgres has no disk left."""
    return isinstance(error, OperationalError) and isinstance(error.orig, DiskFull)


def retry_while_db_down_if(
    may_wait: Callable[[], bool],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a transaction of a worker: work that is done waits for a database that is away."""
    return stamina.retry(
        on=lambda error: is_away(error) and may_wait(),
        attempts=None,
        timeout=AWAY_SECONDS,
        wait_initial=0.2,
        wait_max=2.0,
    )


retry_while_db_down = retry_while_db_down_if(lambda: True)


def notify(session: Session, payload: str) -> None:
    """Wake whoever listens, when and only if this transaction commits."""
    session.execute(text("SELECT pg_notify(:c, :p)"), {"c": CHANNEL, "p": payload})
