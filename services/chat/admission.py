"""Limits concurrent chat requests, and cancels work when its client disconnects."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from services.chat.metrics import IN_FLIGHT, REQUESTS, Outcome
from shared.errors import PlatformError, TooManyRequests
from shared.settings import get_settings

logger = logging.getLogger(__name__)
PING_SECONDS = 15.0
PING = b": ping\n\n"
Events = AsyncGenerator[bytes]


class ConcurrencyLimiter:
    """Those that are taken; more requests are sent away, not queued."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self) -> None:
        if self.taken >= get_settings().max_chat_in_flight:
            REQUESTS.labels(Outcome.refused).inc()
            raise TooManyRequests("too many requests are being answered", retry_after=1)
        self.taken += 1

    def leave(self, outcome: Outcome) -> None:
        REQUESTS.labels(outcome).inc()
        self.taken -= 1


LIMITER = ConcurrencyLimiter()
IN_FLIGHT.set_function(lambda: LIMITER.taken)


class ClientLeft(PlatformError):
    """Nobody reads its response. The status is nginx's, for logs and metrics."""

    status = 499
    code = "client_left"


def outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, ClientLeft | asyncio.CancelledError):
        return Outcome.left
    refused = isinstance(error, PlatformError) and error.status < 500
    return Outcome.refused if refused else Outcome.failed


class EventStream(Response):
    """Server-sent events of a request that has a place, given back whatever ends the stream: also
    a client that leaves at once. Errors become its last event."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, failed: Callable[[PlatformError], bytes]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = self._to_the_end(events, failed)
        self._outcome = Outcome.left
        """Until its last event is there."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with suppress(ClientLeft):
                await cancel_on_disconnect(receive, self._send(send))
        finally:
            LIMITER.leave(self._outcome)

    async def _send(self, send: Send) -> None:
        pings = asyncio.create_task(_ping(send))
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            pings.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _to_the_end(
        self, events: Events, failed: Callable[[PlatformError], bytes]
    ) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
            self._outcome = Outcome.answered
        except PlatformError as error:
            self._outcome = outcome_of(error)
            yield failed(error)
        except Exception as error:
            logger.exception("a stream failed")
            self._outcome = outcome_of(error)
            yield failed(PlatformError("internal error; see the service's log"))


async def _ping(send: Send) -> None:
    """Comments, which keep a connection from looking dead while the model thinks."""
    while True:
        await asyncio.sleep(PING_SECONDS)
        await send({"type": "http.response.body", "body": PING, "more_body": True})


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`. Raises `ClientLeft` when the client goes away: `work` is cancelled, and
    so is the engine's request, which otherwise would go on for nobody."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft("the client went away")
        return task.result()
    finally:
        left.cancel()
        await cancelled(task)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Once it has ended, one way or another."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, PlatformError):
            await task


async def with_slot(answer: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
    """Run `answer` in a slot. A stream keeps its slot until it ends, and is counted then."""
    LIMITER.take()
    try:
        response = await answer()
    except BaseException as error:
        LIMITER.leave(outcome_of(error))
        raise
    if not isinstance(response, EventStream):
        LIMITER.leave(Outcome.answered)
    return response


@asynccontextmanager
async def started(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` beside the block, which begins once its first request is on its way.

    The end of the block cancels it.
    """
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        await cancelled(task)
