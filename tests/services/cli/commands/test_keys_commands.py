"""`forethought keys` and `audit`, and which key is sent where."""

import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from services.cli.api import connect
from services.cli.commands import keys as keys_commands
from services.cli.machine import stack
from services.cli.machine.datadir import DataDir
from services.coordinator.app import app as coordinator
from shared.auth.key_cache import MAX_AGE_SECONDS
from shared.auth.keys import new_key
from shared.db.engine import transaction
from shared.db.tables import ApiKey
from shared.web.guard import KEYS
from tests.services.cli.commands.commanded import client, run
from tests.support import access
from tests.support.scripted_engine import serving


@pytest.fixture(autouse=True)
def connected(clean_database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is pointed at a coordinator, with a key of admin's."""
    monkeypatch.setattr(keys_commands, "connect", lambda _: client())


def test_a_key_is_made_listed_and_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.coordinator.keys.audit.SETTLED_AFTER", timedelta(0))
    made = run("keys", "create", "alice", "--scope", "chat", "--scope", "iterate",
               "--requests-per-minute", "60")  # fmt: skip
    key = made.strip()
    assert made == f"{key}\n", "it stands alone, for a script to take"
    assert access.client(coordinator, key).get("/v1/models").status_code == 200
    listed = run("keys", "list")
    assert key not in listed
    for shown in (key[:12], "alice", "chat iterate", "60 a minute"):
        assert shown in listed
    [id_] = [word for word in listed.split() if len(word) == 36]
    assert "revoked alice" in run("keys", "revoke", id_)
    audit = run("audit")
    assert audit.index("key.create") < audit.index("key.revoke")
    assert "the platform" in audit


def test_what_cannot_be_is_said() -> None:
    assert "no key" in run("keys", "revoke", str(uuid.UUID(int=1)), code=1)
    assert "name" in run("keys", "create", "no name!", "--scope", "chat", code=1)
    assert "root" in run("keys", "create", "a", "--scope", "root", code=2)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataDir:
    """Of a platform that runs."""
    for variable in ("COORDINATOR_URL", "API_KEY", "SERVICE_KEY"):
        monkeypatch.delenv(f"FORETHOUGHT_{variable}", raising=False)
    data = DataDir(tmp_path)
    data.keep_key("ftk_local")
    monkeypatch.setattr(DataDir, "running_url", lambda _: "http://here")
    return data


def used(data: DataDir) -> tuple[str, str | None]:
    client = connect.connect(data)
    return client.url, client.key


def test_the_folders_key_goes_to_its_own_platform_only(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert used(data) == ("http://here", "ftk_local")
    monkeypatch.setenv("FORETHOUGHT_COORDINATOR_URL", "http://here")
    assert used(data) == ("http://here", "ftk_local")
    monkeypatch.setenv("FORETHOUGHT_COORDINATOR_URL", "http://elsewhere")
    assert used(data) == ("http://elsewhere", None)
    monkeypatch.setenv("FORETHOUGHT_SERVICE_KEY", "service")
    assert used(data) == ("http://elsewhere", "service")
    monkeypatch.setenv("FORETHOUGHT_API_KEY", "mine")
    assert used(data) == ("http://elsewhere", "mine")


def test_without_a_running_platform_no_key_is_sent(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataDir, "running_url", lambda _: None)
    assert used(data) == ("http://127.0.0.1:8000", None)


def test_a_later_start_keeps_the_key_unless_it_was_revoked(data: DataDir, redis_url: str) -> None:
    data.keep_key(new_key())  # of another database
    with serving(coordinator) as url:
        keys = [stack._ready_key(data, url, access.SERVICE_KEY) for _ in range(2)]
        with transaction() as session:
            session.execute(update(ApiKey).values(revoked_at=ApiKey.created_at))
        KEYS._looked_at -= MAX_AGE_SECONDS
        keys.append(stack._ready_key(data, url, access.SERVICE_KEY))
    assert keys[0] == keys[1] != keys[2] == data.read_key()
    assert data.key.stat().st_mode & 0o777 == 0o600
