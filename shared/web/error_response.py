"""A `PlatformError` as the HTTP response that a client gets."""

from fastapi.responses import JSONResponse

from shared.errors import PlatformError, TooLarge, Unauthorized


def error_response(error: PlatformError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooLarge):
        headers["Connection"] = "close"  # or the rest of the body would be read, to no end
    return JSONResponse(error.envelope(), status_code=error.status, headers=headers)
