"""Asynchronous client of a vLLM OpenAI server: token ids in, token ids and text out.

Everything goes as token ids, so a service needs no tokenizer, and what a second request continues
is exactly what a first one has generated.

EngineError(PlatformError)  502  it answered with an error
├── EngineAway              503  it cannot be reached, or went away in the middle
└── EngineRefused           400  it finds the request itself wrong, such as too long a prompt
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx2
import orjson

from shared.errors import PlatformError

CONNECT_SECONDS = 5.0
CALL_SECONDS = 60.0
GENERATION_SECONDS = 6 * 3600.0
"""Longest a request may wait for the engine: behind a full queue, hours are legitimate."""
DETAIL_BYTES = 2000
_JSON = {"content-type": "application/json"}


class EngineError(PlatformError):
    """The engine answered with an error. `detail` is the end of its own words: they may hold
    what a model wrote, so they are in no message."""

    status = 502
    code = "engine_failed"

    def __init__(
        self, message: str, *, engine_status: int | None = None, detail: str = "", **kwargs: Any
    ) -> None:
        super().__init__(message, **kwargs)
        self.engine_status = engine_status
        self.detail = detail


class EngineAway(EngineError):
    status = 503
    code = "engine_away"


class EngineRefused(EngineError):
    status = 400
    type = "invalid_request_error"
    code = "engine_refused"


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sample.

    `token_ids` holds everything that was generated, the model's end token included.
    `stop_reason` is the stop string, or the id of a stop token other than the model's own end.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a stream; the last one has a `finish_reason`."""

    text: str
    token_ids: list[int]
    finish_reason: str | None


class EngineClient:
    """A client of the engine at `base_url`; one connection pool, an async context manager.

    What it has looked up about the tokenizer it keeps, so a client belongs to one model.
    """

    def __init__(self, base_url: str, http: httpx2.AsyncClient | None = None) -> None:
        self.base_url = base_url
        self._http = http or httpx2.AsyncClient(
            base_url=base_url,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,  # an engine is near; a proxy is for what is far
        )
        self._token_texts: dict[int, str] = {}
        self._texts: dict[str, list[int]] = {}
        self._max_model_len: int | None = None

    def for_another_model(self) -> "EngineClient":
        """One with the same connections, which has looked up nothing yet."""
        return EngineClient(self.base_url, self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def complete(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        n: int = 1,
        stop: Sequence[str] = (),
        **more: Any,
    ) -> list[Choice]:
        """`n` samples that continue `prompt_ids`, in order of their index.

        A stop string is included in the text. vLLM gives sample k the seed `seed + k`. `more`
        are further fields of vLLM's request, such as `skip_special_tokens`.
        """
        body = {
            "prompt": list(prompt_ids),
            "n": n,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stop": list(stop),
            "include_stop_str_in_output": bool(stop),
            "return_token_ids": True,
            **more,
        }
        answer = await self._post("/v1/completions", body, GENERATION_SECONDS)
        choices = sorted(answer["choices"], key=lambda c: int(c["index"]))
        return [
            Choice(c["text"], c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in choices
        ]

    @asynccontextmanager
    async def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        **more: Any,
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """One sample, piece by piece. Leaving the block early aborts it in the engine."""
        body = {
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "return_token_ids": True,
            "stream": True,
            **more,
        }
        with _engine_errors():
            async with self._http.stream(
                "POST",
                "/v1/completions",
                content=orjson.dumps(body),
                headers=_JSON,
                timeout=_timeout(GENERATION_SECONDS),
            ) as response:
                if response.is_error:
                    raise _error(response.status_code, await response.aread())
                yield _deltas(response)

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of the chat `messages` in the model's template, up to where its turn begins."""
        body = {"messages": list(messages), "add_generation_prompt": True}
        ids: list[int] = (await self._post("/tokenize", body))["tokens"]
        return ids

    async def tokenize(self, text: str) -> list[int]:
        """Ids of a text by itself, without special tokens put before it. Kept: markers repeat."""
        if text not in self._texts:
            body = {"prompt": text, "add_special_tokens": False}
            self._texts[text] = (await self._post("/tokenize", body))["tokens"]
        return self._texts[text]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        text: str = (await self._post("/detokenize", {"tokens": list(ids)}))["prompt"]
        return text

    async def token_text(self, token: int) -> str:
        """Text of one token alone; holds U+FFFD where it is only a part of a character. Kept."""
        if token not in self._token_texts:
            self._token_texts[token] = await self.detokenize([token])
        return self._token_texts[token]

    async def max_model_len(self) -> int:
        """Longest sequence of prompt and output, in tokens."""
        if self._max_model_len is None:
            models = await self._get("/v1/models")
            self._max_model_len = int(models["data"][0]["max_model_len"])
        return self._max_model_len

    async def version(self) -> str:
        return str((await self._get("/version"))["version"])

    async def _get(self, path: str) -> Any:
        with _engine_errors():
            response = await self._http.get(path, timeout=_timeout(CALL_SECONDS))
        return _body(response)

    async def _post(self, path: str, body: Any, seconds: float = CALL_SECONDS) -> Any:
        with _engine_errors():
            response = await self._http.post(
                path, content=orjson.dumps(body), headers=_JSON, timeout=_timeout(seconds)
            )
        return _body(response)


async def _deltas(response: httpx2.Response) -> AsyncIterator[Delta]:
    with _engine_errors():
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            event = orjson.loads(data)
            if "error" in event:
                raise _error(500, data.encode())
            for c in event["choices"]:
                yield Delta(c["text"], c["token_ids"] or [], c["finish_reason"])
    raise EngineAway("the engine ended a stream early", retry_after=5)


class _engine_errors:
    """Turns the HTTP library's errors into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, httpx2.TransportError):
            message = f"the engine does not answer ({type(error).__name__})"
            raise EngineAway(message, retry_after=5) from error


def _body(response: httpx2.Response) -> Any:
    if response.is_error:
        raise _error(response.status_code, response.content)
    return orjson.loads(response.content)


def _error(status: int, content: bytes) -> EngineError:
    kind = EngineAway if status == 503 else EngineRefused if status < 500 else EngineError
    return kind(
        f"the engine answered with status {status}",
        engine_status=status,
        detail=content[-DETAIL_BYTES:].decode(errors="replace"),
        retry_after=5 if status == 503 else None,
    )


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)
