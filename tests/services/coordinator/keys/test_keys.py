"""Keys are shown once, kept as hashes, taken back; and who did what is written down."""

import re
import time
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select, text

from services.coordinator.app import app
from services.coordinator.keys import audit
from services.train.app import app as train
from shared.auth import key_cache
from shared.auth.audit import record
from shared.db.engine import transaction
from shared.db.tables import ApiKey
from shared.errors import Unavailable
from shared.web.client import ServiceClient
from tests.support import access
from tests.support.scripted_engine import serving

FOR_CHAT = {"name": "someone", "scopes": ["chat"]}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are listed as soon as they are written."""
    monkeypatch.setattr(audit, "SETTLED_AFTER", timedelta(0))


def make(client: TestClient, **given: Any) -> dict[str, Any]:
    answer = client.post("/keys", json=FOR_CHAT | given)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    made: dict[str, Any] = answer.json()
    return made


def audited(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/audit").json()["data"]
    return found


def test_a_key_is_shown_once_and_kept_as_a_hash(client: TestClient) -> None:
    made = make(client, scopes=["thoughts", "iterate"], requests_per_minute=60)
    key = made.pop("key")
    assert re.fullmatch(r"ftk_[\w-]{43}", key)
    assert made["prefix"] == key[:12]
    assert made["scopes"] == ["iterate", "thoughts"]
    assert (made["requests_per_minute"], made["concurrent_requests"]) == (60, None)
    listed = client.get("/keys")
    assert listed.json()["data"] == [made]
    with transaction() as session:
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname='public'"))
        rows = [str(session.execute(text(f'SELECT * FROM "{table}"')).all()) for table in tables]
    assert key[12:] not in listed.text + "".join(rows)
    assert make(client)["key"] != key


def test_a_key_does_what_it_may_from_the_first_request(client: TestClient) -> None:
    mine = access.client(app, make(client)["key"])
    assert mine.get("/v1/models").status_code == 200
    assert mine.get("/keys").status_code == 403


def test_a_revoked_key_is_refused_everywhere_after_a_while(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(client, scopes=["iterate"])
    everywhere = [access.client(which, made["key"]) for which in (app, train)]
    assert [c.get("/models?limit=1").status_code for c in everywhere[1:]] == [200]
    first, second = (client.post(f"/keys/{made['id']}/revoke").json() for _ in range(2))
    assert first["revoked_at"] is not None
    assert first == second
    monkeypatch.setattr(key_cache, "MAX_AGE_SECONDS", 0.0)
    monkeypatch.setattr(key_cache, "FRESH_SECONDS", 0.0)
    time.sleep(0.01)
    assert [c.get("/models").status_code for c in everywhere] == [401, 401]
    assert [event["action"] for event in audited(client)] == ["key.create", "key.revoke"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": "chat"}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"requests_per_minute": 10**9}, "requests_per_minute"),
        ({"concurrent_requests": -1}, "concurrent_requests"),
        ({"key": "mine"}, "key"),
    ],
)
def test_bad_input_names_its_field(client: TestClient, change: dict[str, Any], param: str) -> None:
    answer = client.post("/keys", json=FOR_CHAT | change)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert client.get("/keys").json()["data"] == []


def test_a_key_that_is_not_there_cannot_be_revoked(client: TestClient) -> None:
    answer = client.post("/keys/00000000-0000-0000-0000-000000000001/revoke")
    assert answer.status_code == 404


@pytest.mark.usefixtures("train_service")
def test_who_did_what_is_written_down(client: TestClient) -> None:
    made = make(client, name="alice", scopes=["iterate"])
    alice = access.client(app, made["key"])
    body = {"name": "thinker", "base_model": "seed", "dataset": "prompts"}
    iteration = alice.post("/iterations", json=body).json()["id"]
    for _ in range(2):  # the second changes nothing
        assert alice.post(f"/iterations/{iteration}/cancel").status_code == 202
    assert alice.post("/datasets", json={"name": "x", "path": "none"}).status_code == 400
    promoted = alice.post("/models/seed/promote", headers={"X-Request-Id": "req_mine"})
    assert promoted.status_code == 200, promoted.text
    assert alice.post("/prune", json={"older_than_days": 0}).json()["iterations"] == 1

    events = audited(client)
    assert [(event["action"], event["key_name"]) for event in events] == [
        ("key.create", None),
        ("iteration.create", "alice"),
        ("iteration.cancel", "alice"),
        ("model.promote", "alice"),
        ("prune", "alice"),
    ]
    assert events[1]["subject"] == iteration
    assert events[3]["subject"] == "seed@v1"
    assert events[3]["request_id"] == "req_mine", "though another service wrote it"
    assert {event["key_id"] for event in events[1:]} == {made["id"]}
    assert all(event["request_id"] for event in events)
    later = client.get("/audit", params={"after": events[2]["id"], "limit": 1}).json()
    assert [event["id"] for event in later["data"]] == [events[3]["id"]]
    assert later["has_more"]


def test_reading_on_skips_no_event_that_is_committed_late(
    client: TestClient, clean_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(after: int | None) -> list[dict[str, Any]]:
        params = {} if after is None else {"after": after}
        data: list[dict[str, Any]] = client.get("/audit", params=params).json()["data"]
        return data

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(audit, "SETTLED_AFTER", timedelta(seconds=1))
    with transaction() as slow:
        record(slow, "slow", "x")
        slow.flush()  # it has the lower id
        with transaction() as quick:
            record(quick, "quick", "x")
        seen += listed(None)
    time.sleep(1.1)
    seen += listed(seen[-1]["id"] if seen else None)
    assert [event["action"] for event in seen] == ["slow", "quick"]


def test_what_is_undone_was_not_done(client: TestClient) -> None:
    body = {"name": "thinker", "base_model": "no-such-model", "dataset": "prompts"}
    assert client.post("/iterations", json=body).status_code == 404
    assert client.post("/prune", json={"older_than_days": 0, "dry_run": True}).status_code == 200
    assert audited(client) == []


def test_services_with_different_keys_say_so(engine: Engine) -> None:
    with serving(train) as url:
        other = ServiceClient(url, "the-key-of-another-platform-altogether")
        with pytest.raises(Unavailable, match="FORETHOUGHT_SERVICE_KEY") as refused:
            other.get("/models")
        other._http.close()
    assert refused.value.code == "service_key_refused"


def test_a_later_versions_scope_opens_nothing_and_breaks_nothing(client: TestClient) -> None:
    key = make(client)["key"]
    with transaction() as session:
        session.scalars(select(ApiKey)).one().scopes = ["chat", "of tomorrow"]
    assert access.client(app, key).get("/v1/models").status_code == 200
    assert client.get("/keys").json()["data"][0]["scopes"] == ["chat"]
