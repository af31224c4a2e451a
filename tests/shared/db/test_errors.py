"""Errors of the database are told apart by their SQLSTATE."""

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import services.judge.app
from shared.db.engine import is_away, is_conflict, is_full, retry_while_db_down
from shared.web import session as web_session
from tests.support import access


def raised(connection: Connection, statement: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as error:
        connection.execute(text(statement))
    connection.invalidate()
    return error.value


def test_a_statement_that_takes_too_long_is_an_error(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 50"))
        error = raised(connection, "SELECT pg_sleep(5)")
    assert not is_away(error), f"{error} was taken for a database that is away"
    assert not is_conflict(error)


def test_a_lock_that_is_not_available_is_an_error(clean_database: Engine) -> None:
    with clean_database.connect() as holder, clean_database.connect() as connection:
        holder.execute(text("LOCK TABLE jobs"))
        error = raised(connection, "LOCK TABLE jobs NOWAIT")
    assert not is_away(error), f"{error} was taken for a database that is away"


def test_a_connection_ended_by_an_administrator_is_a_database_that_is_away(engine: Engine) -> None:
    with engine.connect() as other, engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        error = raised(connection, "SELECT 1")
    assert is_away(error), error


def test_a_server_that_is_not_there_is_away() -> None:
    with pytest.raises(DBAPIError) as error:
        create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none").connect()
    assert is_away(error.value), error.value


def test_a_full_disk_is_not_away(engine: Engine) -> None:
    raise_full = "DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$"
    with engine.connect() as connection:
        error = raised(connection, raise_full)
    assert is_full(error)
    assert not is_away(error)


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
def test_a_worker_retries_a_lost_race_at_once(engine: Engine, sqlstate: str) -> None:
    raises = f"DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '{sqlstate}'; END $$"
    tries: list[uuid.UUID] = []

    @retry_while_db_down
    def work() -> None:
        tries.append(uuid.uuid4())
        if len(tries) < 3:
            with engine.connect() as connection:
                error = raised(connection, raises)
                assert not is_away(error)
                raise error

    work()
    assert len(tries) == 3


def test_a_request_that_waits_too_long_for_a_lock_is_not_told_that_the_database_is_away(
    clean_database: Engine,
) -> None:
    def impatient() -> Iterator[Session]:
        with Session(clean_database) as session:
            session.execute(text("SET LOCAL lock_timeout = 50"))
            yield session

    app = services.judge.app.app
    app.dependency_overrides[web_session._session] = impatient
    try:
        with clean_database.connect() as holder:
            holder.execute(text("LOCK TABLE jobs"))
            answer = access.client(app).get("/jobs")
    finally:
        del app.dependency_overrides[web_session._session]
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"]["code"] == "internal_error"
