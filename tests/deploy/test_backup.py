"""`docs/operate.md` on backing Postgres up: its two commands, on the database of the tests."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from services.cli.machine.postgres import bin_dir
from shared.db.engine import transaction
from shared.db.tables import Base
from tests.deploy.manifests import ROOT
from tests.support import factories


def documented(tool: str) -> list[str]:
    found = re.search(rf"-T postgres ({tool} [^<>\n]+)", (ROOT / "docs" / "operate.md").read_text())
    assert found is not None
    return shlex.split(found[1])


def run(command: list[str], engine: Engine, **files: object) -> None:
    """Where compose has it run in Postgres's container, its socket says which one is meant."""
    environment = os.environ | {"PGHOST": str(engine.url.query["host"])}
    tool = str(bin_dir() / command[0])
    subprocess.run([tool, *command[1:]], env=environment, check=True, **files)  # type: ignore[call-overload]


def counts(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            name: connection.execute(text(f'SELECT count(*) FROM "{name}"')).scalar_one()
            for name in [*Base.metadata.tables, "alembic_version"]
        }


@pytest.mark.slow
def test_a_dump_comes_back(clean_database: Engine, tmp_path: Path) -> None:
    with transaction() as session:
        factories.model(session)
        factories.dataset(session, train=500)
    before = counts(clean_database)
    assert before["prompts"] == 502
    dump = tmp_path / "forethought.dump"
    with dump.open("wb") as file:
        run(documented("pg_dump"), clean_database, stdout=file)
    restore = documented("pg_restore")
    run(["createdb", "-U", "forethought", "restored"], clean_database)
    there = create_engine(clean_database.url.set(database="restored"))
    try:
        for _ in range(2):  # into an empty one, and over what is there
            with dump.open("rb") as file:
                run([*restore[:-1], "restored"], clean_database, stdin=file)
            assert counts(there) == before
    finally:
        there.dispose()
        run(["dropdb", "-U", "forethought", "restored"], clean_database)
