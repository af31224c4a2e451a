"""Authentication, authorisation and rate limits, before anything of a request's body is read."""

import hmac
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import log
from shared.auth.key_cache import KeyCache
from shared.auth.key_limits import LIMITS
from shared.auth.keys import CALLER, ON_BEHALF_OF_HEADER, Caller, service_caller
from shared.auth.scopes import OPEN, scope_of
from shared.errors import Forbidden, InvalidRequest, PlatformError, Unauthorized
from shared.settings import get_settings
from shared.web.errors import error_response

KEYS = KeyCache()
route_path = get_route_path
"""The path by which Starlette's router chooses a route. The function is not public, but whatever
else the guard looked at could differ from what the router takes."""


class Guard:
    """ASGI middleware: authenticates and authorises a request before its body is read."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or route_path(scope) in OPEN:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        with ExitStack() as held:
            try:
                caller = await _caller(scope)
                held.enter_context(_answering(caller))
                self._check(scope, caller)
                held.enter_context(LIMITS.counted(caller))
            except PlatformError as error:
                await error_response(error)(scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _check(self, scope: Scope, caller: Caller) -> None:
        """Raises `Forbidden`. A path that no route takes passes: the application answers 404."""
        wanted = scope_of(scope["method"], route_path(scope))
        if wanted is None:
            if any(route.matches(scope)[0] is Match.FULL for route in self.routes):
                raise Forbidden("this route is in no key's scope")
        elif wanted not in caller.scopes:
            raise Forbidden(f"this route needs a key with the scope {wanted.value!r}")


@contextmanager
def _answering(caller: Caller) -> Iterator[None]:
    token = CALLER.set(caller)
    log.bind_here(key_id=caller.key_id and str(caller.key_id))
    try:
        yield
    finally:
        CALLER.reset(token)


async def _caller(scope: Scope) -> Caller:
    """Raises `Unauthorized` without a live key, `Unavailable` where that cannot be known."""
    kind, _, key = _only(scope, "Authorization").partition(b" ")
    key = key.strip()
    if kind.lower() != b"bearer" or not key:
        raise Unauthorized("no API key was given; send it as `Authorization: Bearer KEY`")
    service = get_settings().service_key
    if service and hmac.compare_digest(key, service.get_secret_value().encode()):
        return service_caller(_behalf(_only(scope, ON_BEHALF_OF_HEADER)))
    caller = await KEYS.find(key)
    if caller is None:
        raise Unauthorized("this API key is not known, or was revoked")
    return caller


def _only(scope: Scope, header: str) -> bytes:
    """Return a header's value, or nothing. Raises `InvalidRequest` for a header given twice: a
    proxy may have read the other one."""
    name = header.lower().encode()
    found = [value for given, value in scope["headers"] if given == name]
    if len(found) > 1:
        raise InvalidRequest(f"{header}: stands there more than once", param=header)
    return found[0] if found else b""


def _behalf(value: bytes) -> uuid.UUID | None:
    try:
        return uuid.UUID(value.decode("latin-1")) if value else None
    except ValueError:
        raise InvalidRequest(
            f"{ON_BEHALF_OF_HEADER}: is no id of a key", param=ON_BEHALF_OF_HEADER
        ) from None
