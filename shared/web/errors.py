"""Errors as the HTTP responses that a client gets, all in OpenAI's envelope."""

import errno

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from shared.base import MAX_DEPTH
from shared.db.engine import DB_UNAVAILABLE, is_away, is_conflict, is_full
from shared.errors import (
    InvalidRequest,
    PlatformError,
    RequestTimeout,
    TooLarge,
    Unauthorized,
    Unavailable,
    envelope,
)
from shared.web.field_errors import field_error


def error_response(error: PlatformError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooLarge | RequestTimeout):
        headers["Connection"] = "close"  # or the rest of the body would be read, to no end
    return JSONResponse(error.envelope(), status_code=error.status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Have every exception that a route raises answered, as far as it has a meaning."""
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DataError, _data_error)
    for unavailable in DB_UNAVAILABLE:
        app.add_exception_handler(unavailable, _database_error)
    app.add_exception_handler(OSError, _os_error)


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


async def _database_error(_: Request, error: Exception) -> JSONResponse:
    if is_full(error):
        return error_response(_disk_full("the database's disk"))
    if is_away(error):
        message, code = "the database is away; retry shortly", "database_away"
    elif is_conflict(error):
        message, code = "another request changed the same rows; retry", "database_conflict"
    else:
        raise error
    return error_response(Unavailable(message, code=code, retry_after=2))
