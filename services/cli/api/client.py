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
"""How long a model may take to be registered."""


class PlatformAway(CliError):
    """No platform answers, or not in time."""


class RequestFailed(CliError):
    """The coordinator answered with an error; `status` is its HTTP status."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.retry_after = response.headers.get("Retry-After")
        super().__init__(_describe(response))


def _describe(response: httpx2.Response) -> str:
    """The envelope's message, led by the field it names."""
    try:
        error = response.json()["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} from {response.request.url}"
    return message if param is None or message.startswith(param) else f"{param}: {message}"


class Client:
    """Every method raises `RequestFailed` on an error answer and `PlatformAway` without one."""

    def __init__(
        self, url: str, key: str | None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.url, self.key = url.rstrip("/"), key
        # A local address; proxies of the environment are not meant for it.
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
                f"the platform at {self.url} did not answer within {PATIENCE_S:.0f} s. It may yet "
                "do what it was asked: look whether it has before you repeat the command."
            ) from None
        except httpx2.TransportError as error:
            raise PlatformAway(
                f"no platform answers at {self.url} ({error}). Start one with `forethought up`, "
                "or name its address in FORETHOUGHT_COORDINATOR_URL."
            ) from None
        if response.is_error:
            raise RequestFailed(response)
        return response

    def start_run(self, config: Object, key: str) -> Object:
        """The first iteration of a new run. The same `key` never starts a second one."""
        headers = {"Idempotency-Key": key}
        return self._request("POST", "/iterations", json=config, headers=headers)

    def iterations(self, run_id: str) -> list[Object]:
        """All iterations of a run (100 at most), in their order."""
        page = self._request("GET", "/iterations", params={"run_id": run_id, "limit": 100})
        return sorted(page["data"], key=lambda iteration: int(iteration["number"]))

    def iteration(self, iteration_id: str) -> Object | None:
        return self._find(f"/iterations/{iteration_id}")

    def run_report(self, run_id: str) -> Object | None:
        return self._find(f"/runs/{run_id}/report")

    def page(self, path: str) -> str:
        """A route's HTML."""
        return self._answer("GET", path).text

    def rows(self, path: str, **params: Any) -> Iterator[Object]:
        """All rows of a listed route, a page at a time."""
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
        """By id, `name@v1` or `name`; None where there is none."""
        return self._find(f"/models/{reference}")

    def register_model(self, name: str, source: str) -> Object:
        return self._request("POST", "/models", json={"name": name, "source": source})

    def wait_for_model(self, reference: str) -> Object:
        """The model once its weights are in the store."""
        deadline = time.monotonic() + REGISTRATION_S
        while time.monotonic() < deadline:
            model = self._request("GET", f"/models/{reference}")
            if model["status"] == "ready":
                return model
            if model["status"] == "failed":
                reason = (model["error"] or {}).get("message", "see the worker's log")
                raise CliError(f"model {reference} could not be registered: {reason}")
            time.sleep(0.5)
        raise CliError(f"model {reference} is not registered after {REGISTRATION_S:.0f} s")

    def promote(self, reference: str) -> Object:
        return self._request("POST", f"/models/{reference}/promote")

    def prune(self, older_than_days: float, dry_run: bool) -> Object:
        body = {"older_than_days": older_than_days, "dry_run": dry_run}
        return self._request("POST", "/prune", json=body)

    def create_key(self, name: str, scopes: Iterable[str], **limits: int | None) -> Object:
        """The new key's row, with the key itself as its `key`."""
        return self._request("POST", "/keys", json={"name": name, "scopes": [*scopes], **limits})

    def revoke_key(self, key_id: str) -> Object:
        return self._request("POST", f"/keys/{key_id}/revoke")

    def has_live_key(self) -> bool:
        """Whether the platform takes this client's key, for whatever it is."""
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
