"""Every route of every service, asked with every key: none, bad, revoked, of each scope."""

import asyncio
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import stamina
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, delete
from starlette.routing import Route
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope
from starlette.websockets import WebSocketDisconnect

from services.coordinator.app import app as coordinator
from services.generate.app import app as generate
from services.judge.app import app as judge
from services.train.app import app as train
from shared.auth.keys import CALLER, EVERY_SCOPE, ON_BEHALF_OF_HEADER, Caller, digest, new_key
from shared.auth.scopes import LISTED, OPEN
from shared.db.engine import transaction
from shared.db.tables import ApiKey, Scope
from shared.web import guard
from shared.web.app import create_app
from shared.web.guard import Guard
from tests.support import access

APPS = {"coordinator": coordinator, "generate": generate, "judge": judge, "train": train}


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of all that it answers, but for what is open."""
    for route in app.routes:
        assert isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            if route.path not in OPEN:
                yield method, route.path


EVERY = pytest.mark.parametrize(
    ("app", "method", "path"),
    [
        pytest.param(app, method, path, id=f"{name} {method} {path}")
        for name, app in APPS.items()
        for method, path in routes(app)
    ],
)


@pytest.fixture(scope="module")
def keys(engine: Engine, redis_url: str) -> Iterator[dict[str, str]]:
    """By what is special about them."""
    keys = {scope.value: access.made_key(scope) for scope in Scope}
    keys |= {f"not {s.value}": access.made_key(*(EVERY_SCOPE - {s})) for s in Scope}
    keys["revoked"] = access.made_key()
    with transaction() as session:
        revoked = session.query(ApiKey).filter_by(sha256=digest(keys["revoked"].encode())).one()
        revoked.revoked_at = revoked.created_at
    stamina.set_active(False)  # train is away, and need not be asked again
    yield keys | {"bad": new_key(), "hardly one": "x", "service": access.SERVICE_KEY}
    stamina.set_active(True)
    with transaction() as session:
        session.execute(delete(ApiKey))


def ask(app: FastAPI, method: str, path: str, key: str | None) -> Any:
    """With an id that nothing has for each parameter, and without a body."""
    where = re.sub(r"\{\w+\}", str(uuid.UUID(int=1)), path)
    client = TestClient(app, raise_server_exceptions=False)
    return client.request(method, where, headers=access.bearer(key))


@EVERY
def test_a_route_asks_for_a_live_key(
    app: FastAPI, method: str, path: str, keys: dict[str, str]
) -> None:
    for key in (None, keys["bad"], keys["hardly one"], keys["revoked"]):
        answer = ask(app, method, path, key)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]
        assert key is None or key not in answer.text


@EVERY
def test_a_route_asks_for_its_scope_and_no_other(
    app: FastAPI, method: str, path: str, keys: dict[str, str]
) -> None:
    wanted = LISTED[method, path]
    for scope in Scope:
        alone = ask(app, method, path, keys[scope.value])
        without = ask(app, method, path, keys[f"not {scope.value}"])
        assert (alone.status_code == 403) == (scope is not wanted), alone.text
        assert (without.status_code == 403) == (scope is wanted), without.text
        for answer in (alone, without):
            if answer.status_code == 403:
                assert answer.json()["error"]["code"] == "insufficient_scope"
                assert wanted.value in answer.json()["error"]["message"]
            assert answer.status_code != 401
    assert ask(app, method, path, keys["service"]).status_code not in (401, 403)


def test_a_key_for_chat_opens_chat_alone() -> None:
    opened = {path for (_, path), scope in LISTED.items() if scope is Scope.chat}
    assert opened == {
        *("/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/models/{name}"),
    }


def test_the_table_lists_what_there_is() -> None:
    assert {route for app in APPS.values() for route in routes(app)} == LISTED.keys()


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_what_is_open_needs_no_key(app: FastAPI, engine: Engine, redis_url: str) -> None:
    for path in OPEN:
        assert ask(app, "GET", path, None).status_code == 200
    described = app.openapi()["paths"]
    for method, path in routes(app):
        security = described[path][method.lower()]["security"]
        assert security == [{"key": [LISTED[method, path]]}]


def test_a_route_that_is_not_listed_is_for_nobody(keys: dict[str, str]) -> None:
    router = APIRouter()
    router.add_api_route("/forgotten/{name}", lambda name: name)
    app = create_app("test", router)
    assert ask(app, "GET", "/forgotten/{name}", None).status_code == 401
    for key in keys.values():
        assert ask(app, "GET", "/forgotten/{name}", key).status_code in (401, 403)


def test_what_is_not_there_is_told_to_who_has_a_key() -> None:
    assert ask(coordinator, "GET", "/nothing", None).status_code == 401
    assert ask(coordinator, "GET", "/nothing", access.SERVICE_KEY).status_code == 404
    assert ask(coordinator, "DELETE", "/iterations", access.SERVICE_KEY).status_code == 405


@pytest.mark.parametrize("path", ["/keys/", "//keys", "/Keys", "/healthz/../keys", "/healthz/"])
def test_no_way_of_writing_a_path_leads_around_the_guard(path: str) -> None:
    assert TestClient(coordinator, follow_redirects=False).get(path).status_code == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {} x", "Bearer x{}", "Bearer \x00{}"],
)
def test_only_a_bearers_whole_key_counts(header: str) -> None:
    given = {b"authorization": header.format(access.SERVICE_KEY).encode()}
    answer = TestClient(judge).get("/jobs", headers=list(given.items()))
    assert answer.status_code == 401


def test_a_bearer_may_be_written_in_any_case(engine: Engine) -> None:
    headers = {"authorization": f"bearer  {access.SERVICE_KEY}"}
    assert TestClient(judge).get("/jobs", headers=headers).status_code == 200


def test_nobody_speaks_over_a_websocket() -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(coordinator).websocket_connect("/v1/models", headers=access.HEADERS),
    ):
        pass


def test_without_a_service_key_none_is_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "get_settings", lambda: type("S", (), {"service_key": None}))
    for key in ("", "None"):
        headers = {"authorization": f"Bearer {key}"}
        assert TestClient(judge).get("/jobs", headers=headers).status_code == 401


class Held:
    """An application that answers when it is told to, and keeps who asked."""

    def __init__(self) -> None:
        self.callers: list[Caller | None] = []
        self.end = asyncio.Event()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        self.callers.append(CALLER.get())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.end.wait()
        await send({"type": "http.response.body", "body": b""})


async def status(app: Guard, key: str, **headers: str) -> int:
    """With which it answers a question to chat."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    given = access.bearer(key) | headers
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
    }
    await app(scope, None, send)  # type: ignore[arg-type]  # no body is read
    return int(sent[0]["status"])


def test_a_stream_is_counted_until_its_end(clean_database: Engine) -> None:
    key = access.made_key(Scope.chat, concurrent_requests=1)

    async def scenario() -> None:
        held = Held()
        app = Guard(held, [])
        first = asyncio.create_task(status(app, key))
        while not held.callers:
            await asyncio.sleep(0.01)
        assert await status(app, key) == 429
        held.end.set()
        assert await first == 200
        assert await status(app, key) == 200

        held.end.clear()
        left = asyncio.create_task(status(app, key))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        held.end.set()
        assert await status(app, key) == 200, "a client that has left holds nothing"

    asyncio.run(scenario())


def test_a_minutes_requests_are_counted(clean_database: Engine) -> None:
    key = access.made_key(Scope.iterate, requests_per_minute=2)
    answers = [access.client(generate, key).get("/jobs") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 58 <= int(answers[2].headers["retry-after"]) <= 60


def test_a_service_says_for_whom_it_asks_and_only_a_service(clean_database: Engine) -> None:
    for_whom = str(uuid.uuid4())
    key = access.made_key()

    async def scenario() -> list[Caller | None]:
        held = Held()
        held.end.set()
        app = Guard(held, [])
        assert await status(app, access.SERVICE_KEY, **{ON_BEHALF_OF_HEADER: for_whom}) == 200
        assert await status(app, access.SERVICE_KEY) == 200
        assert await status(app, key, **{ON_BEHALF_OF_HEADER: for_whom}) == 200
        assert await status(app, access.SERVICE_KEY, **{ON_BEHALF_OF_HEADER: "x"}) == 400
        return held.callers

    service, alone, other = asyncio.run(scenario())
    assert service is not None
    assert str(service.key_id) == for_whom
    assert Scope.thoughts not in service.scopes
    assert alone is not None
    assert alone.key_id is None
    assert other is not None
    assert str(other.key_id) != for_whom
    assert CALLER.get() is None


def test_of_several_keys_none_counts(keys: dict[str, str]) -> None:
    client = TestClient(coordinator, raise_server_exceptions=False)
    both = [("authorization", f"Bearer {keys[k]}") for k in ("bad", "iterate")]
    for headers in (both, both[::-1]):
        answer = client.get("/iterations", headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "Authorization"


def test_what_two_callers_name_alike_is_not_one(clean_database: Engine, redis_url: str) -> None:
    mine, yours = access.made_key(), access.made_key()
    body = {"items": [{"instruction": "Say a", "response": "a"}]}
    ids = set()
    for key in (mine, mine, yours):
        headers = access.bearer(key) | {"Idempotency-Key": "run-1"}
        answer = TestClient(judge).post("/judge", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        ids.add(answer.json()["id"])
    assert len(ids) == 2, "each has its own, and a repeat finds it"
