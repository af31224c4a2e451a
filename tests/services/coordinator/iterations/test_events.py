"""Streams of events: what many watchers cost, and what they hear while nothing happens."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from services.coordinator.app import app
from services.coordinator.iterations import events
from shared.db.engine import transaction
from shared.db.tables import Iteration
from tests.services.coordinator.iterations.test_routes import BODY
from tests.support import access
from tests.support.scripted_engine import serving
from tests.support.statements import counted
from tests.support.waiting import until

HEADERS = access.HEADERS | {"Accept": "text/event-stream"}


@pytest.fixture
def iteration_id(client: TestClient) -> str:
    return str(client.post("/iterations", json=BODY).json()["id"])


@contextlib.contextmanager
def watched(url: str, watchers: int) -> Iterator[list[list[str]]]:
    """The lines that each of several clients has got so far."""
    lines: list[list[str]] = [[] for _ in range(watchers)]
    stop = threading.Event()

    def watch(got: list[str]) -> None:
        with httpx2.stream("GET", url, headers=HEADERS, timeout=30) as stream:
            for line in stream.iter_lines():
                got.append(line)
                if stop.is_set():
                    return

    threads = [threading.Thread(target=watch, args=(got,), daemon=True) for got in lines]
    for thread in threads:
        thread.start()
    yield lines
    stop.set()


def test_fifty_watchers_of_an_iteration_cost_what_one_does(
    client: TestClient, iteration_id: str, clean_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_INTERVAL_S", 0.1)
    costs = []
    with serving(app) as url:
        for watchers in (1, 50):
            with watched(f"{url}/iterations/{iteration_id}/events", watchers) as lines:
                until(lambda: all(lines), "all watchers have got the first event")
                with counted(clean_database) as statements:
                    time.sleep(1.0)
                costs.append(len(statements))
                with transaction() as session:
                    events.record(session, uuid.UUID(iteration_id), "stage", f"of {watchers}")
                until(
                    lambda: all(f"of {watchers}" in "".join(got) for got in lines),  # noqa: B023
                    "all watchers have got the new event",
                )
        client.post(f"/iterations/{iteration_id}/cancel")
        until(lambda: not events._feeds, "the polling has ended with the iteration")
    assert costs[1] <= costs[0] * 1.5, f"{costs[0]} statements for one watcher, {costs[1]} for 50"


def test_a_stream_is_kept_alive_while_nothing_happens(
    client: TestClient, iteration_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.2)
    with (
        serving(app) as url,
        watched(f"{url}/iterations/{iteration_id}/events", 1) as [lines],
    ):
        until(lambda: lines.count(": keep-alive") >= 3, "comments come")
        client.post(f"/iterations/{iteration_id}/cancel")
        until(lambda: any("cancelled" in line for line in lines), "the end is told")


def test_lists_take_as_many_statements_for_a_hundred_rows_as_for_one(
    client: TestClient, clean_database: Engine
) -> None:
    for n in range(5):
        client.post("/iterations", json=BODY | {"name": f"n{n}", "baseline": True})
    with transaction() as session:
        assert session.query(Iteration).count() == 10
    for route in ("/iterations", "/datasets"):
        with counted(clean_database) as statements:
            assert client.get(route, params={"limit": 100}).status_code == 200
        asked = [s for s in statements if s.lstrip().startswith("SELECT")]
        assert len(asked) <= 3, f"{route} took {len(asked)} statements: {asked}"


def test_a_stream_needs_no_thread_of_the_default_executor(iteration_id: str) -> None:
    release = threading.Event()

    async def first_event() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, release.wait)
        stream = events._stream(uuid.UUID(iteration_id), 0)
        try:
            return await asyncio.wait_for(anext(stream), 10)
        finally:
            release.set()
            await blocked
            await stream.aclose()  # type: ignore[attr-defined]

    assert "event: status" in asyncio.run(first_event())
