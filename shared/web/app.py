"""One application factory for all services: errors, request ids, health, metrics."""

import math
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from sqlalchemy import text
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import log
from shared.auth.keys import CALLER
from shared.auth.scopes import LISTED
from shared.db.engine import DB_UNAVAILABLE, get_engine
from shared.errors import PlatformError
from shared.jobs import broker
from shared.web.errors import add_handlers, error_response
from shared.web.field_errors import refuse_unknown
from shared.web.guard import Guard
from shared.web.large_bodies import LargeBodies
from shared.web.limits import RequestLimits

READY_SECONDS = 1.0
"""Seconds for which an answer of `/readyz` is reused: asking costs a connection to each server."""
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "OpenAI's error envelope: the request's fault"},
    "5XX": {"description": "OpenAI's error envelope: ours"},
}

REQUESTS = Counter(
    "forethought_http_requests_total", "HTTP requests", ["service", "method", "route", "status"]
)
LATENCY = Histogram(
    "forethought_http_request_seconds", "Time to the end of the response", ["service", "route"]
)


def create_app(
    service: str,
    *routers: APIRouter,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    uploads: Collection[str] = (),
) -> FastAPI:
    """Make a service's application. `uploads` are paths that take a file, which may be larger."""
    log.configure(service)
    app = _Api(title=f"Forethought: {service}", lifespan=lifespan, responses=ERRORS)
    for router in routers:
        # OpenAI's routes take fields that they do not know: clients add some.
        strict = [] if router.prefix == "/v1" else [Depends(refuse_unknown)]
        app.include_router(router, dependencies=strict)
    app.include_router(_health_router())
    add_handlers(app)
    # Each is wrapped around those above it.
    app.add_middleware(LargeBodies)
    app.add_middleware(RequestLimits, uploads=uploads)
    # Outside the limits: nothing is read of a request without a key.
    app.add_middleware(Guard, routes=app.routes)
    app.add_middleware(_Observed, service=service)
    return app


class _Api(FastAPI):
    """Adds to the OpenAPI description which scope each route needs."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                scope = LISTED.get((method.upper(), path))
                operation["security"] = [{"key": [scope]}] if scope else []
        return schema


def _health_router() -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    ready = _Readiness()

    @router.get("/readyz")
    def readyz() -> dict[str, str]:
        """The database answers. The broker may be away: that delays work and refuses none."""
        return ready.check()

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


class _Readiness:
    """Answer of `/readyz`, which asks the database and the broker at most once a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checked_at = -math.inf
        self._answer: dict[str, str] | Exception = {}

    def check(self) -> dict[str, str]:
        """Raises what the database raised."""
        with self._lock:
            if time.monotonic() - self._checked_at > READY_SECONDS:
                try:
                    self._answer = _ask_dependencies()
                except DB_UNAVAILABLE as error:
                    self._answer = error
                self._checked_at = time.monotonic()
            if isinstance(self._answer, Exception):
                raise self._answer.with_traceback(None)
            return self._answer


def _ask_dependencies() -> dict[str, str]:
    with get_engine().connect() as connection:
        connection.execute(text("SELECT 1"))
    try:
        broker.ping()
    except Exception:  # kombu raises what its transport raises
        return {"status": "ok", "database": "ok", "broker": "away"}
    return {"status": "ok", "database": "ok", "broker": "ok"}


class _Observed:
    """ASGI middleware: passes the request id on, writes a log line and metrics for each request,
    and answers 500 where the service failed. (A `BaseHTTPMiddleware` would buffer streams.)"""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode("latin-1")),
                ]
            await send(message)

        # A request that was sent behind another one begins in that one's context.
        CALLER.set(None)
        with log.bind(request_id=request_id, key_id=None):
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                # The server logs the traceback; the client gets no detail, which might hold a
                # thought.
                if not status:
                    answer = error_response(PlatformError("internal error; see the service's log"))
                    await answer(scope, receive, send_with_id)
                raise
            finally:
                self._record(scope, status or 500, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        # The route's template, not the path: labels stay few and hold no user input.
        name = getattr(route, "path", "unknown")
        REQUESTS.labels(self.service, scope["method"], name, str(status)).inc()
        LATENCY.labels(self.service, name).observe(seconds)
        if name not in ("/healthz", "/readyz", "/metrics"):
            log.logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "route": name,
                    "status": status,
                    "seconds": round(seconds, 4),
                    **_ids(scope),
                },
            )


def _ids(scope: Scope) -> dict[str, str]:
    """Find the ids of the iteration and job in the path. What a route itself bound to its log lines
    is gone by now."""
    named = scope.get("path_params", {})
    found = {}
    for what in ("iteration", "job"):
        with suppress(ValueError):
            found[what] = str(uuid.UUID(named.get(f"{what}_id", "")))
    return found


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= 128 and value.isascii():
            given: str = value.decode("latin-1")
            if given.isprintable():
                return given
    return f"req_{uuid.uuid4().hex}"
