"""Calls from one service to another: put, get, cancel a job; JSON in, JSON out."""

from typing import Any

import httpx2
import stamina

from shared import log
from shared.auth.keys import CALLER, ON_BEHALF_OF_HEADER
from shared.errors import InvalidRequest, PlatformError, Unavailable

Body = dict[str, Any]


class ServiceError(PlatformError):
    """Another service refused; its envelope is passed on with its status."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(
            error.get("message", "no message"), param=error.get("param"), code=error.get("code")
        )
        self.status = status
        self.type = error.get("type", InvalidRequest.type)


class ServiceClient:
    """Client of one service. It names the API key whose request is being answered. Every call is
    safe to repeat, so lost connections are retried."""

    def __init__(self, base_url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment is for what lies outside, and must not see the key.
        self._http = httpx2.Client(
            base_url=base_url, headers=headers, timeout=30.0, trust_env=False
        )

    def get(self, path: str, **params: Any) -> Body:
        return self._call("GET", path, params=params)

    def put(self, path: str, body: Body, **params: Any) -> Body:
        return self._call("PUT", path, json=body, params=params)

    def post(
        self, path: str, body: Body | None = None, *, idempotency_key: str | None = None
    ) -> Body:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._call("POST", path, json=body, headers=headers)

    def _call(self, method: str, path: str, **kwargs: Any) -> Body:
        try:
            response = self._send(method, path, **kwargs)
        except httpx2.TransportError as error:
            raise Unavailable(
                f"{self._http.base_url} does not answer: {type(error).__name__}",
                code="service_away",
                retry_after=2,
            ) from error
        if response.status_code == 401:  # not the fault of whose request this is about
            raise Unavailable(
                f"{self._http.base_url} refuses the key it is asked with: FORETHOUGHT_SERVICE_KEY "
                "must be the same everywhere",
                code="service_key_refused",
            )
        if response.is_error:
            raise ServiceError(response.status_code, _error_of(response))
        body: Body = response.json()
        return body

    @stamina.retry(on=httpx2.ConnectError, attempts=3, wait_initial=0.1, timeout=5)
    def _send(self, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        headers = kwargs.pop("headers", {}) | _about()
        return self._http.request(method, path, headers=headers, **kwargs)


def _about() -> dict[str, str]:
    """Make headers with the caller's key and the request's id, for the other service's audit and
    log."""
    headers, caller = {}, CALLER.get()
    if caller is not None and caller.key_id is not None:
        headers[ON_BEHALF_OF_HEADER] = str(caller.key_id)
    if (request_id := log.request_id()) is not None:
        headers["X-Request-ID"] = request_id
    return headers


def _error_of(response: httpx2.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": f"{response.url} answered {response.status_code} without an envelope"}
    return error if isinstance(error, dict) else {"message": str(error)}
