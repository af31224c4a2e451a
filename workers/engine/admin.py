"""The private side of a vLLM server: canary, probe, weight swap, sleep. Needs its dev mode."""

from contextlib import suppress
from typing import Any

import httpx2

from shared.errors import OurError

CALL_SECONDS = 20.0
PAUSE_SECONDS = 120.0
"""Seconds for which a swap waits for requests under way before it ends them."""
SWAP_SECONDS = 600.0
METRICS_SECONDS = 5.0
TOKENS = ("vllm:prompt_tokens_total{", "vllm:generation_tokens_total{")
REQUESTS = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")


class EngineError(OurError):
    """The engine does not start, answer, or serve the weights that it should."""


class EngineStartError(EngineError):
    """It ended or hung while starting."""


class EngineTimeout(EngineError):
    """It did not answer in time."""


class SwapError(EngineError):
    """It serves other weights than it was given."""


class EngineAdmin:
    """One engine's address. Every call raises `EngineError` with the engine's own words."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx2.Client(base_url=url, timeout=CALL_SECONDS, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def healthy(self) -> bool:
        """Tell whether the server answers at all; `canary` tells whether it works."""
        try:
            return self._http.get("/health").is_success
        except httpx2.TransportError:
            return False

    def canary(self, seconds: float = CALL_SECONDS) -> None:
        """One real token: /health stays green on an engine that has stopped to decode."""
        body = {"prompt": "1", "max_tokens": 1, "temperature": 0}
        answer = self._post("/v1/completions", body, timeout=seconds)
        if answer["usage"]["completion_tokens"] != 1:
            raise EngineError(f"{self.url}: the canary got no token")

    def probe(self, token_ids: list[int]) -> list[float]:
        """Log-probability of each id given those before it; one fewer than there are ids."""
        body = {"prompt": token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        # Behind all that waits in the engine, as a swap's pause.
        answer = self._post("/v1/completions", body, timeout=PAUSE_SECONDS)
        positions = answer["choices"][0]["prompt_logprobs"]
        return [
            float(position[str(token)]["logprob"])
            for token, position in zip(token_ids[1:], positions[1:], strict=True)
        ]

    def tokenize(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        tokens: list[int] = self._post("/tokenize", body)["tokens"]
        return tokens

    def idle(self) -> bool:
        """Tell by the engine's own gauges that no request runs or waits."""
        return not any(self._gauges(REQUESTS))

    def tokens_done(self) -> float:
        """Tokens that it has read or written since its start; grows as long as it works."""
        return sum(self._gauges(TOKENS))

    def _gauges(self, names: tuple[str, ...]) -> list[float]:
        lines = self._call("GET", "/metrics", timeout=METRICS_SECONDS).text.splitlines()
        return [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names)]

    def swap(self, weights_path: str, label: str) -> None:
        """Put other weights of the same architecture in place, under the version `label`.

        Requests under way end first, on the weights they began with; later ones wait and get the
        new ones. A request that does not end in two minutes is aborted, as is one that has waited
        behind them, perhaps with a thought of the old weights.
        """
        self._pause()
        try:
            # Until the new ones are whole; chat may ask.
            self.label("")
            reload = {"method": "reload_weights", "kwargs": {"weights_path": weights_path}}
            self._post("/collective_rpc", reload, timeout=SWAP_SECONDS)
            # What was computed with the old weights must not be continued with the new ones.
            if not self._post("/reset_prefix_cache").get("success", True):
                raise SwapError(f"{self.url}: the prefix cache could not be emptied")
            self.label(label)
        finally:
            self._post("/resume")

    def label(self, version: str) -> None:
        """Say which weights it has; chat asks for it while it cannot ask the database."""
        self._post("/update_weight_version", {"new_version": version})

    def _pause(self) -> None:
        with suppress(EngineTimeout):
            self._post("/pause?mode=wait", timeout=PAUSE_SECONDS)
        self._post("/pause?mode=abort")

    def sleep(self) -> None:
        """Free the device's memory; the weights wait in the machine's."""
        self._post("/sleep?level=1", timeout=SWAP_SECONDS)

    def wake(self) -> None:
        self._post("/wake_up", timeout=SWAP_SECONDS)

    def _post(self, path: str, body: dict[str, Any] | None = None, **options: Any) -> Any:
        response = self._call("POST", path, json=body or {}, **options)
        return response.json() if response.content else {}

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            kind = EngineTimeout if isinstance(error, httpx2.TimeoutException) else EngineError
            raise kind(f"{self.url}{path}: {type(error).__name__}") from error
        if response.is_error:
            raise EngineError(f"{self.url}{path}: {response.status_code} {response.text[:500]}")
        return response
