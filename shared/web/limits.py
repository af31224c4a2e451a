"""How large a request may be: its head, its body and how deep its JSON is nested."""

from collections.abc import Collection

from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import HeadTooLarge, TooLarge
from shared.settings import get_settings
from shared.web.error_response import error_response

MAX_HEAD_BYTES = 32 * 1024
"""Of the address and all headers: what common proxies allow, several times what clients send."""
FORM_BYTES = 64 * 1024
"""Of an upload, for what stands around its file."""
DRAINED_BODIES = 2
"""How many times the limit is read of a body that is refused, so that its sender, who reads no
answer before it has sent all, gets to it. Whoever sends more than that is cut off."""


class RequestLimits:
    """Refuses a request that is too large before any of it is parsed. Plain ASGI, for streams."""

    def __init__(self, app: ASGIApp, uploads: Collection[str]) -> None:
        """`uploads` are the paths that take a file."""
        self.app = app
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _head_bytes(scope) > MAX_HEAD_BYTES:
            error = HeadTooLarge(f"address and headers are more than {MAX_HEAD_BYTES} bytes")
            await error_response(error)(scope, receive, send)
            return
        body = _Body(receive, self._limit(scope))
        if _announced(scope) > body.limit:
            await body.drain()
            await error_response(body.too_large())(scope, receive, send)
            return
        await self.app(scope, body.receive, send)

    def _limit(self, scope: Scope) -> int:
        settings = get_settings()
        if get_route_path(scope) in self._uploads:
            return settings.max_upload_bytes + FORM_BYTES
        return settings.max_body_bytes


class _Body:
    """What arrives of a body, counted."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._seen = 0
        self._ended = False
        self.limit = limit

    async def receive(self) -> Message:
        """Raises `HTTPException`, which FastAPI lets through from wherever it reads a body."""
        message = await self._next()
        if self._seen > self.limit:
            await self.drain()
            raise HTTPException(TooLarge.status) from self.too_large()
        return message

    async def drain(self) -> None:
        """Read on and keep nothing."""
        while not self._ended and self._seen <= DRAINED_BODIES * self.limit:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    def too_large(self) -> TooLarge:
        return TooLarge(f"the body is more than {self.limit} bytes")


def _head_bytes(scope: Scope) -> int:
    address = len(scope["raw_path"] or b"") + len(scope["query_string"])
    return address + sum(len(name) + len(value) for name, value in scope["headers"])


def _announced(scope: Scope) -> int:
    """The body's length as its header has it; 0 where it has none. The server checks its form."""
    given = (value for name, value in scope["headers"] if name == b"content-length")
    return int(next(given, 0))
