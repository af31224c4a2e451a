"""Engine, transactions and notifications. One request or one shard is one transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ParamSpec, TypeVar

import psycopg
import stamina
from psycopg.errors import DiskFull
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import Session, sessionmaker

from shared.settings import get_settings

AWAY_SECONDS = 600.0
"""Seconds for which a worker keeps finished work while the database is away."""
FROZEN_MS = 120_000
"""Postgres ends the transaction of a suspended process after this time, and so frees its locks."""
DB_UNAVAILABLE = (OperationalError, InterfaceError, NoConnectionFree)
"""Exceptions of SQLAlchemy among which are those of a database that is away or full; `is_away` and
`is_full` tell which."""
AWAY_STATES = ("08", "57P01", "57P02", "57P03", "53300")
"""SQLSTATEs of a database that is away: connection failure (a whole class), shutdown by an
administrator, crash, start-up, and no connection left."""
CONFLICT_STATES = ("40001", "40P01")
"""SQLSTATEs of a transaction that lost against another one: serialization failure, deadlock."""
AWAY_AFTER_SECONDS = 3
SILENT_SECONDS = 10
"""A server whose machine is gone sends nothing at all, and no error."""
CHANNEL = "forethought"
"""LISTEN/NOTIFY channel. A notification only wakes a waiter; its payload says what changed."""


P = ParamSpec("P")
T = TypeVar("T")


@cache
def get_engine() -> Engine:
    return _create(SILENT_SECONDS, pool_pre_ping=True, pool_size=10, pool_timeout=SILENT_SECONDS)


@cache
def failfast_engine() -> Engine:
    """A second engine for callers that must fail fast, such as authentication and chat.

    It never waits for a free connection, and a statement ends after 3 seconds. One connection is
    kept open, because a server that has reached its limit takes no new ones.
    """
    limit = f"-c statement_timeout={AWAY_AFTER_SECONDS * 1000}"
    return _create(AWAY_AFTER_SECONDS, limit, pool_pre_ping=True, pool_size=1, max_overflow=-1)


def _create(silence: int, options: str = "", **pool: Any) -> Engine:
    """`silence` is in seconds, `options` are those of Postgres."""
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
    """The URL as libpq takes it, without SQLAlchemy's name of the driver."""
    return url.replace("+psycopg", "", 1)


def listen() -> "psycopg.Connection[Any]":
    """A connection that receives the notifications. Raises `psycopg.OperationalError`."""
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


def is_away(error: BaseException) -> bool:
    """Postgres could not be reached, or closed the connection: the transaction may be retried."""
    if isinstance(error, InterfaceError | NoConnectionFree):
        return True
    cause = _psycopg_error(error)
    if not isinstance(cause, psycopg.OperationalError):
        return False
    # libpq reports a connection that breaks, or is refused, without an SQLSTATE.
    return cause.sqlstate is None or cause.sqlstate.startswith(AWAY_STATES)


def is_conflict(error: BaseException) -> bool:
    """Another transaction won: this one may be retried at once."""
    cause = _psycopg_error(error)
    return isinstance(cause, psycopg.Error) and cause.sqlstate in CONFLICT_STATES


def is_full(error: BaseException) -> bool:
    """Postgres has no disk space left."""
    return isinstance(_psycopg_error(error), DiskFull)


def _psycopg_error(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def retry_while_db_down_if(
    may_wait: Callable[[], bool],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator for a worker's transaction: finished work waits for a database that is away."""

    def backoff(error: Exception) -> bool | float:
        return 0.0 if is_conflict(error) else is_away(error) and may_wait()

    return stamina.retry(
        on=backoff, attempts=None, timeout=AWAY_SECONDS, wait_initial=0.2, wait_max=2.0
    )


retry_while_db_down = retry_while_db_down_if(lambda: True)


def notify(session: Session, payload: str) -> None:
    """Wake the listeners, when and only if this transaction commits."""
    session.execute(text("SELECT pg_notify(:c, :p)"), {"c": CHANNEL, "p": payload})
