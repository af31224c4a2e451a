"""Closed-loop load on a chat server: so many clients, each with one request after another."""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import uvloop

from tests.support.access import bearer

Request = Callable[[aiohttp.ClientSession], Awaitable[None]]
"""One request to its end; raises where it is not answered as it should be."""


@dataclass(frozen=True)
class Load:
    """What was measured, in seconds."""

    seconds: float
    latencies: list[float]
    errors: int

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, p: int) -> float:
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[p - 1]


def run(
    request: Request, *, clients: int, seconds: float, warm_up: float = 1.0, pause: float = 0.0
) -> Load:
    """Requests that begin in the first `warm_up` seconds are not counted.

    Between two requests a client pauses for a random time, in the mean `pause` seconds: without
    it, equal requests go in lock-step, and each waits for all others of its moment.
    """
    return uvloop.run(_run(request, clients, seconds, warm_up, pause))


async def _run(
    request: Request, clients: int, seconds: float, warm_up: float, pause: float
) -> Load:
    latencies: list[float] = []
    errors = 0
    begun = time.perf_counter() + warm_up
    end = begun + seconds

    async def client(http: aiohttp.ClientSession) -> None:
        nonlocal errors
        await asyncio.sleep(random.uniform(0, 2 * pause))
        while (started := time.perf_counter()) < end:
            try:
                await request(http)
            except (aiohttp.ClientError, AssertionError):
                errors += 1
                continue
            if started >= begun:
                latencies.append(time.perf_counter() - started)
            if pause:
                await asyncio.sleep(random.uniform(0, 2 * pause))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return Load(time.perf_counter() - begun, latencies, errors)


async def post(http: aiohttp.ClientSession, url: str, body: dict[str, Any], key: str = "") -> Any:
    """The JSON answer to a JSON body."""
    async with http.post(url, json=body, headers=bearer(key)) as response:
        assert response.status == 200
        return orjson.loads(await response.read())
