"""OpenAI's chat completions over the promoted model: final answers only."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from services.coordinator import serving
from services.coordinator.chat_schema import ChatRequest
from services.coordinator.serving import CACHE, ServedModel
from services.coordinator.two_phases import Piece, Turn, prepare
from shared.errors import PlatformError, TooManyRequests
from shared.settings import get_settings

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["chat"])
lifespan = serving.lifespan
PING_SECONDS = 15.0
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class _Places:
    """How many requests are answered at once; more are sent away, not queued."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self) -> None:
        if self._taken >= get_settings().max_chat_in_flight:
            raise TooManyRequests("too many requests are being answered", retry_after=1)
        self._taken += 1

    def leave(self) -> None:
        self._taken -= 1


PLACES = _Places()


class _Stream(StreamingResponse):
    """Gives its place back whatever ends it, a client that leaves at once included."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            PLACES.leave()


@router.get("/models")
async def list_models() -> dict[str, Any]:
    """The served model, as `name@version` and as `name`."""
    try:
        model = CACHE.current().model
    except PlatformError:
        return {"object": "list", "data": []}
    return {"object": "list", "data": [_model(model, model.ref), _model(model, model.name)]}


@router.get("/models/{name}")
async def get_model(name: str) -> dict[str, Any]:
    """404 unless that model is served."""
    return _model((await CACHE.named(name)).model, name)


@router.post("/chat/completions", response_class=Response)
async def chat_completions(request: ChatRequest, http: Request) -> Response:
    """Think in private, then answer. The thought is in no field of the answer or its stream."""
    PLACES.take()
    handed_on = False
    try:
        served = await CACHE.named(request.model)
        turn = await prepare(request, served)
        if request.stream:
            handed_on = True
            return _Stream(_stream(turn), media_type="text/event-stream", headers=STREAM_HEADERS)
        return JSONResponse(await _or_disconnect(http, _complete(turn)))
    finally:
        if not handed_on:
            PLACES.leave()


async def _complete(turn: Turn) -> dict[str, Any]:
    await turn.think()
    choices = await asyncio.gather(*(_collect(turn, k) for k in range(turn.request.n)))
    return _base(turn, "chat.completion") | {"choices": choices, "usage": turn.usage.as_openai()}


async def _collect(turn: Turn, choice: int) -> dict[str, Any]:
    pieces = [piece async for piece in turn.answer(choice)]
    return {
        "index": choice,
        "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces)},
        "finish_reason": pieces[-1].finish_reason,
        "logprobs": None,
    }


async def _stream(turn: Turn) -> AsyncIterator[bytes]:
    try:
        base = _base(turn, "chat.completion.chunk")
        include_usage = bool(
            turn.request.stream_options and turn.request.stream_options.include_usage
        )
        if include_usage:
            base["usage"] = None
        for choice in range(turn.request.n):
            yield _event(base | _delta(choice, {"role": "assistant", "content": ""}))
        async for ping in _pings_while(turn.think()):
            yield ping
        async with aclosing(_merged(turn)) as pieces:
            async for choice, piece in pieces:
                if piece.text:
                    yield _event(base | _delta(choice, {"content": piece.text}))
                if piece.finish_reason:
                    yield _event(base | _delta(choice, {}, piece.finish_reason))
        if include_usage:
            yield _event(base | {"choices": [], "usage": turn.usage.as_openai()})
        yield b"data: [DONE]\n\n"
    except PlatformError as error:
        yield _event(error.envelope())
    except Exception:
        logger.exception("a stream failed")
        yield _event(PlatformError("internal error; see the service's log").envelope())


async def _pings_while(work: Coroutine[Any, Any, None]) -> AsyncIterator[bytes]:
    """Comments, which keep a connection from looking dead while the model thinks."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=PING_SECONDS))[0]:
            yield b": ping\n\n"
        task.result()
    finally:
        await _cancelled(task)


async def _merged(turn: Turn) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of all choices as they come."""
    queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()

    async def pump(choice: int) -> None:
        async for piece in turn.answer(choice):
            await queue.put((choice, piece))

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for choice in range(turn.request.n):
                    group.create_task(pump(choice))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await queue.put(None)

    task = asyncio.create_task(pump_all())
    try:
        while (item := await queue.get()) is not None:
            yield item
        await task
    finally:
        await _cancelled(task)


async def _or_disconnect(http: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled when the client goes away: so is the engine's
    request, which otherwise would go on for nobody."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return {}  # nobody reads it
    finally:
        await _cancelled(task)
        await _cancelled(left)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, PlatformError):
            await task


def _base(turn: Turn, kind: str) -> dict[str, Any]:
    model = turn.served.model
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.ref,
        "system_fingerprint": f"fp_{model.id.hex}",
    }


def _delta(choice: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    entry = {"index": choice, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return {"choices": [entry]}


def _model(model: ServedModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": "forethought"}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
