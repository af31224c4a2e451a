"""One application factory for all services: errors, request ids, health, metrics."""

import errno
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import log
from shared.auth.keys import CALLER
from shared.auth.scopes import LISTED
from shared.base import MAX_DEPTH
from shared.db.engine import DB_UNAVAILABLE, get_engine, is_full
from shared.errors import InvalidRequest, PlatformError, Unavailable, envelope
from shared.jobs import broker
from shared.web import known_fields
from shared.web.error_response import error_response
from shared.web.field_errors import field_error
from shared.web.guard import Guard
from shared.web.limits import RequestLimits

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
    """`uploads` are the paths that take a file, which may be larger than other bodies."""
    log.configure(service)
    app = _Api(title=f"Forethought: {service}", lifespan=lifespan, responses=ERRORS)
    for router in routers:
        app.include_router(router, dependencies=known_fields.checks(router))
    app.include_router(_health_router())
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DataError, _data_error)
    for away in DB_UNAVAILABLE:
        app.add_exception_handler(away, _database_away)
    app.add_exception_handler(OSError, _os_error)
    app.add_middleware(RequestLimits, uploads=uploads)
    # Around it: of who has no key, nothing is read.
    app.add_middleware(Guard, routes=app.routes)
    app.add_middleware(_Observed, service=service)
    return app


class _Api(FastAPI):
    """Describes which scope each of its routes asks of a key."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                scope = LISTED.get((method.upper(), path))
                operation["security"] = [{"key": [scope]}] if scope else []
        return schema


async def _platform_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PlatformError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 as OpenAI's 400 that names the field; never echoes the input."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return error_response(InvalidRequest("the body is not JSON"))
    where = errors[0]["loc"][0]  # the body, the query, the path
    inside = [e | {"loc": e["loc"][1:]} for e in errors if e["loc"][0] == where]
    found = field_error(inside, error.body if where == "body" else None)
    return error_response(
        InvalidRequest(
            f"{found.field or where}: {found.message}", param=found.field or None, code=found.code
        )
    )


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    match error.__cause__:
        case PlatformError() as cause:
            return error_response(cause)
        case OSError(errno=errno.ENOSPC):  # a long upload waits in a file
            return error_response(_disk_full("the disk for temporary files"))
        case RecursionError():  # of the JSON parser, long before it would matter
            message = f"the body is nested deeper than {MAX_DEPTH} levels"
            return error_response(InvalidRequest(message, code="too_deep"))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    body = envelope(str(error.detail), "invalid_request_error", None, code)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _data_error(request: Request, error: Exception) -> JSONResponse:
    # A value that no field check refuses but Postgres does: NUL in a path, a number too large.
    given = {**request.query_params, **request.path_params}
    name = next((name for name, value in given.items() if "\0" in str(value)), None)
    if name is not None:
        message = f"{name}: must not hold a NUL character"
        return error_response(InvalidRequest(message, param=name))
    return error_response(InvalidRequest("a value of this request cannot be stored"))


def _disk_full(which: str) -> Unavailable:
    return Unavailable(f"{which} is full; free some space and retry", code="disk_full")


async def _os_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno != errno.ENOSPC:
        raise error
    return error_response(_disk_full("the disk for temporary files"))


async def _database_away(_: Request, error: Exception) -> JSONResponse:
    if is_full(error):
        return error_response(_disk_full("the database's disk"))
    return error_response(
        Unavailable("the database is away; retry shortly", code="database_away", retry_after=2)
    )


def _health_router() -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> dict[str, str]:
        """The database answers. The broker may be away: that delays work and refuses none."""
        with get_engine().connect() as connection:
            connection.execute(text("SELECT 1"))
        try:
            broker.ping()
        except Exception:  # kombu raises what its transport raises
            return {"status": "ok", "database": "ok", "broker": "away"}
        return {"status": "ok", "database": "ok", "broker": "ok"}

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


class _Observed:
    """Request id in and out, one log line and one measurement a request, and an answer where the
    service failed to give one. Plain ASGI: a `BaseHTTPMiddleware` would buffer streams."""

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
    """Of the iteration or job in the path: what a route binds ends with its own context."""
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
