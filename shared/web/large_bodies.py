"""Requests with a large body are answered on an event loop of their own.

To parse and check a body of many megabytes takes seconds. On the server's event loop nothing else
would move meanwhile: no stream of a chat, no answer of `/healthz`.
"""

import asyncio
import gc
import threading
from collections.abc import Awaitable
from contextlib import ExitStack
from functools import cache
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.auth.scopes import scope_of
from shared.db.tables import Scope as KeyScope
from shared.web.guard import route_path
from shared.web.limits import announced_bytes

LARGE_BYTES = 256 * 1024
Result = TypeVar("Result")


class LargeBodies:
    """ASGI middleware: runs the application on a second event loop where the body is large.

    Chat stays on the server's own loop, which its clients belong to; its bodies are bounded lower.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _may_be_large(scope):
            there = _second_loop()
            await _run_on(there, self._answer(scope, receive, send, asyncio.get_running_loop()))
        else:
            await self.app(scope, receive, send)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, main: asyncio.AbstractEventLoop
    ) -> None:
        is_json = b"json" in dict(scope["headers"]).get(b"content-type", b"")
        with ExitStack() as turn:
            has_turn = False

            async def receive_here() -> Message:
                nonlocal has_turn
                message = await _run_on(main, receive())
                if is_json and not has_turn and not message.get("more_body", False):
                    has_turn = True
                    await _TURN.acquire()
                    turn.callback(_TURN.release)
                    gc.disable()
                    turn.callback(gc.enable)
                return message

            async def send_here(message: Message) -> None:
                await _run_on(main, send(message))

            await self.app(scope, receive_here, send_here)


_TURN = asyncio.Lock()
"""One large JSON body at a time is parsed, checked and answered: parsed it takes many times its
size. No garbage is collected meanwhile. A collection visits every object of the body, some million,
and stops all threads for as long; what can be freed without one still is."""


def _may_be_large(scope: Scope) -> bool:
    if scope["method"] not in ("POST", "PUT"):
        return False
    if scope_of(scope["method"], route_path(scope)) is KeyScope.chat:
        return False
    length = announced_bytes(scope)
    return length is None or length > LARGE_BYTES


async def _run_on(loop: asyncio.AbstractEventLoop, work: Awaitable[Result]) -> Result:
    """Await what another thread's loop does, with the context variables of this task."""

    async def run() -> Result:
        return await work

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), loop))


@cache
def _second_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="large bodies", daemon=True).start()
    return loop
