"""The coordinator's REST API as the command line uses it."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2

from services.cli.errors import CliError

Object = dict[str, Any]
PAGE_ROWS = 200
PATIENCE_S = 30.0
REGISTRATION_S = 600.0
"""Seconds that the registration of a model may take."""


class PlatformAway(CliError):
    """No platform answers, or it answers too late."""


class RequestFailed(CliError):
    """The coordinator answered with an error; `status` is its HTTP status."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.retry_after = response.headers.get("Retry-After")
        try:
            error = response.json()["error"]
            message, param = str(error["message"]), error.get("param")
        except (ValueError, KeyError, TypeError):
            message, param = f"HTTP {response.status_code} from {response.request.url}", None
        named = param is None or message.startswith(param)
        super().__init__(message if named else f"{param}: {message}")


class Client:
    """Client of the coordinator. Every method raises `RequestFailed` when the answer is an error,
    and `PlatformAway` when there is no answer."""

    def __init__(
        self, url: str, key: str | None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.url, self.key = url.rstrip("/"), key
        # The address is usually local: a proxy from the environment would not reach it.
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=PATIENCE_S,
            trust_env=False,
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def _request(self, method: str, path: str, **options: Any) -> Object:
        body: Object = self._answer(method, path, **options).json()
        return body

    def _answer(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except (httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise PlatformAway(
                f"the platform at {self.url} did not answer within {PATIENCE_S:.0f} s. It may "
                "still carry out the request: check this before you repeat the command."
            ) from None
        except httpx2.TransportError as error:
            raise PlatformAway(
                f"no platform answers at {self.url} ({error}). Start one with `forethought up`, "
                "or set FORETHOUGHT_COORDINATOR_URL to its address."
            ) from None
        if response.is_error:
            raise RequestFailed(response)
        return response

    def start_run(self, config: Object, key: str) -> Object:
        """Start a run; returns its first iteration. The same `key` never starts a second run."""
        headers = {"Idempotency-Key": key}
        return self._request("POST", "/iterations", json=config, headers=headers)

    def iterations(self, run_id: str) -> list[Object]:
        """Return all iterations of a run (at most 100) in order, each with its report."""
        page = self._request("GET", "/iterations", params={"run_id": run_id, "limit": 100})
        return sorted(page["data"], key=lambda iteration: int(iteration["number"]))

    def iteration(self, iteration_id: str) -> Object | None:
        return self._find(f"/iterations/{iteration_id}")

    def run_report(self, run_id: str) -> Object | None:
        return self._find(f"/runs/{run_id}/report")

    def page(self, path: str) -> str:
        """Return the HTML of a route."""
        return self._answer("GET", path).text

    def rows(self, path: str, **params: Any) -> Iterator[Object]:
        """Yield all rows of a list route, one page at a time."""
        params |= {"limit": PAGE_ROWS}
        while True:
            page = self._request("GET", path, params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params |= {"after": page["last_id"]}

    def cancel(self, iteration_id: str) -> Object:
        return self._request("POST", f"/iterations/{iteration_id}/cancel")

    def resume(self, iteration_id: str, **change: Any) -> Object:
        return self._request("POST", f"/iterations/{iteration_id}/resume", json=change)

    def model(self, reference: str) -> Object | None:
        """Return the model of an id, `name@v1` or `name`, or None."""
        return self._find(f"/models/{reference}")

    def register_model(self, name: str, source: str) -> Object:
        return self._request("POST", "/models", json={"name": name, "source": source})

    def wait_for_model(self, reference: str) -> Object:
        """Wait until the weights of a model are in the store; returns the model."""
        deadline = time.monotonic() + REGISTRATION_S
        while time.monotonic() < deadline:
            model = self._request("GET", f"/models/{reference}")
            if model["status"] == "ready":
                return model
            if model["status"] == "failed":
                reason = (model["error"] or {}).get("message", "see the worker's log")
                raise CliError(f"model {reference} could not be registered: {reason}")
            time.sleep(0.5)
        raise CliError(
            f"model {reference} is not registered after {REGISTRATION_S:.0f} s. Its registration "
            f"goes on: see GET /models/{reference}"
        )

    def promote(self, reference: str) -> Object:
        return self._request("POST", f"/models/{reference}/promote")

    def prune(self, older_than_days: float, dry_run: bool) -> Object:
        body = {"older_than_days": older_than_days, "dry_run": dry_run}
        return self._request("POST", "/prune", json=body)

    def create_key(self, name: str, scopes: Iterable[str], **limits: int | None) -> Object:
        """Make a key; returns its row, with the key itself in `key`."""
        return self._request("POST", "/keys", json={"name": name, "scopes": [*scopes], **limits})

    def revoke_key(self, key_id: str) -> Object:
        return self._request("POST", f"/keys/{key_id}/revoke")

    def has_live_key(self) -> bool:
        """Tell whether the platform knows this client's key, whatever the key may do."""
        try:
            self._request("GET", "/v1/models")
        except RequestFailed as error:
            return error.status != 401
        return True

    def dataset(self, name: str) -> Object | None:
        return self._find(f"/datasets/{name}")

    def upload_dataset(self, name: str, file: Path) -> Object:
        with file.open("rb") as lines:
            files = {"file": (file.name, lines, "application/jsonl")}
            return self._request("POST", "/datasets/upload", data={"name": name}, files=files)

    def _find(self, path: str) -> Object | None:
        try:
            return self._request("GET", path)
        except RequestFailed as error:
            if error.status == 404:
                return None
            raise
