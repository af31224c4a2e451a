"""Errors that a caller can react to; `shared.web.errors` renders them.

PlatformError               500
├── InvalidRequest          400  a field is wrong; `param` names it
├── Unauthorized            401  no key, or none that is live
├── Forbidden               403  a key without the scope
├── NotFound                404
├── RequestTimeout          408  the body arrives too slowly
├── Conflict                409  the thing exists, but not in a state that allows this
├── Gone                    410  it was there, and was pruned
├── TooLarge                413
├── HeadTooLarge            431  address and headers
├── TooManyRequests         429  come back after `retry_after` seconds
└── Unavailable             503  a dependency is away or a model is loading; retry later
"""

from typing import Any


class OurError(Exception):
    """Base class of errors whose message a log may show: it quotes no key, prompt or thought."""


class PlatformError(OurError):
    """An error with an HTTP status, rendered in OpenAI's envelope."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after = retry_after

    def envelope(self) -> dict[str, Any]:
        return envelope(self.message, self.type, self.param, self.code)


class InvalidRequest(PlatformError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(PlatformError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(PlatformError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class NotFound(PlatformError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class RequestTimeout(PlatformError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(PlatformError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class Gone(PlatformError):
    status = 410
    type = "invalid_request_error"
    code = "pruned"


class TooLarge(PlatformError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class HeadTooLarge(PlatformError):
    status = 431
    type = "invalid_request_error"
    code = "too_large"


class TooManyRequests(PlatformError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(PlatformError):
    status = 503
    code = "unavailable"


def envelope(message: str, type_: str, param: str | None, code: str) -> dict[str, Any]:
    """OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}
