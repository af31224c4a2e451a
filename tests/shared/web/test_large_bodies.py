"""Large bodies, through a real server: what they cost others in the same process."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from fastapi import APIRouter, FastAPI

from shared import log
from shared.auth.scopes import OPEN
from shared.schemas.requests import IterationRequest
from shared.settings import Settings
from shared.web.app import create_app
from tests.support.scripted_engine import serving

PROMPTS = 200_000
MAX_STALL_S = 1.2
"""On an idle machine it is 0.2 s, for the parser of JSON lets no other thread run; on a busy one
0.8 s. On the server's own loop the same body costs more than 2 s."""
router = APIRouter()
stalls: list[float] = []
"""Seconds between two turns of a task in the server's event loop that sleeps a millisecond."""


@router.post("/iterate")
def iterate(request: IterationRequest) -> dict[str, str | int | None]:
    count = len(request.prompts) + len(request.validation_prompts)
    return {"prompts": count, "request_id": log.request_id()}


async def _tick() -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.001)
        stalls.append(time.monotonic() - began)


@asynccontextmanager
async def _ticking(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(_tick())
    yield
    task.cancel()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.web.guard.OPEN", OPEN | {"/iterate"})
        with serving(create_app("large", router, lifespan=_ticking)) as url:
            yield url


def iteration(prompts: int) -> bytes:
    """A request for an iteration with this many prompts, of 150 bytes each."""
    rows = [{"text": f"{n:08d} {'x' * 130}"} for n in range(prompts)]
    half = prompts // 2
    request = {"name": "a", "base_model": "b@v1", "prompts": rows[:half]}
    return json.dumps(request | {"validation_prompts": rows[half:]}).encode()


def test_a_large_body_does_not_hold_up_the_event_loop(url: str) -> None:
    body = iteration(PROMPTS)
    assert 29_000_000 < len(body) < Settings().max_body_bytes
    stalls.clear()
    headers = {"content-type": "application/json", "x-request-id": "large"}
    answer = httpx2.post(f"{url}/iterate", content=body, headers=headers, timeout=60)
    assert answer.json() == {"prompts": PROMPTS, "request_id": "large"}, answer.text
    worst = max(stalls)
    assert worst < MAX_STALL_S, f"the event loop stood still for {worst:.3f} s"
