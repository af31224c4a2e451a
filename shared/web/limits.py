"""Limits of a request's size and slowness, and of all bodies that a process holds."""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.auth.scopes import scope_of
from shared.db.tables import Scope as KeyScope
from shared.errors import HeadTooLarge, PlatformError, RequestTimeout, TooLarge, Unavailable
from shared.settings import get_settings
from shared.web.errors import error_response
from shared.web.guard import route_path

MAX_HEAD_BYTES = 32 * 1024
"""Limit of the address and all headers: what common proxies allow, several times what clients
send."""
FORM_BYTES = 64 * 1024
"""Allowance of an upload for what stands around its file."""
DRAINED_BODIES = 2
"""We read up to this many times the limit before closing: many clients read the 413 only after
sending the whole body."""
MIN_BYTES_PER_S = 1024
"""Slowest pace of a body, beyond its first `body_timeout_s`."""


class RequestLimits:
    """ASGI middleware: refuses what is too large or too slow before any of it is parsed."""

    def __init__(self, app: ASGIApp, uploads: Collection[str]) -> None:
        """`uploads` are the paths that take a file."""
        self.app = app
        self._uploads = uploads
        self._chat, self._others, self._files = _Budget(), _Budget(), _Budget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _head_bytes(scope) > MAX_HEAD_BYTES:
            too_large = HeadTooLarge(f"address and headers are more than {MAX_HEAD_BYTES} bytes")
            await error_response(too_large)(scope, receive, send)
            return
        body = self._body(scope, receive)
        try:
            if error := body.refusal(announced_bytes(scope) or 0):
                await body.drain()
                await error_response(error)(scope, receive, send)
                return
            await self.app(scope, body.receive, send)
        finally:
            body.release()

    def _body(self, scope: Scope, receive: Receive) -> "_Body":
        settings, path = get_settings(), route_path(scope)
        if path in self._uploads:  # they wait in files, so memory sets no bound
            return _Body(receive, settings.max_upload_bytes + FORM_BYTES, self._files, None)
        most = settings.max_body_bytes_in_flight
        if scope_of(scope["method"], path) is KeyScope.chat:
            limit = min(settings.max_chat_body_bytes, settings.max_body_bytes)
            return _Body(receive, limit, self._chat, most)
        return _Body(receive, settings.max_body_bytes, self._others, most)


class _Budget:
    """Bytes of the bodies that are held in memory, from their arrival to the request's end."""

    held = 0


class _Body:
    """A body as it arrives, counted and timed."""

    def __init__(self, receive: Receive, limit: int, budget: _Budget, most: int | None) -> None:
        self._receive = receive
        self._limit = limit
        self._budget = budget
        self._most = most
        self._seen = 0
        self._held = 0
        self._ended = False
        self._waited = 0.0

    def refusal(self, size: int) -> PlatformError | None:
        """Return why a body that becomes this large is not taken. One alone always fits."""
        if size > self._limit:
            return TooLarge(f"the body is more than {self._limit} bytes")
        others = self._budget.held - self._held
        if self._most is not None and size and others and others + size > self._most:
            return Unavailable(
                "the bodies of other requests take all memory there is for them; retry shortly",
                code="busy",
                retry_after=2,
            )
        return None

    async def receive(self) -> Message:
        """Raises `HTTPException`, which FastAPI lets through from wherever it reads a body."""
        message = await self._next()
        if error := self.refusal(self._seen):
            self.release()
            await self.drain()
            raise HTTPException(error.status) from error
        self._budget.held += self._seen - self._held
        self._held = self._seen
        return message

    def release(self) -> None:
        self._budget.held -= self._held
        self._held = 0

    async def drain(self) -> None:
        """Read on and keep nothing."""
        with suppress(HTTPException):  # a sender that is too slow as well
            while not self._ended and self._seen <= DRAINED_BODIES * self._limit:
                await self._next()

    async def _next(self) -> Message:
        if self._ended:  # what comes now is the disconnect, whenever that is
            return await self._receive()
        patience = get_settings().body_timeout_s + self._seen / MIN_BYTES_PER_S - self._waited
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                message = await self._receive()
        except TimeoutError:
            self._ended = True
            error = RequestTimeout("the body did not arrive in time")
            raise HTTPException(error.status) from error
        self._waited += time.monotonic() - began
        self._seen += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message


def _head_bytes(scope: Scope) -> int:
    address = len(scope["raw_path"] or b"") + len(scope["query_string"])
    return address + sum(len(name) + len(value) for name, value in scope["headers"])


def announced_bytes(scope: Scope) -> int | None:
    """Length of the body by its header; None for one that comes in chunks. The server checks the
    header's form."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    return int(headers.get(b"content-length", 0))
