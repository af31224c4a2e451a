"""Asynchronous client of a vLLM OpenAI server: token ids in, token ids and text out.

Everything goes as token ids, so a service needs no tokenizer, and what a second request continues
is exactly what a first one has generated.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import aiohttp
import orjson

from shared.vllm.answers import (
    Choice,
    choices,
    engine_errors,
    error_of,
    pieces,
)
from shared.vllm.sampling import SamplingParams

CONNECT_SECONDS = 5.0
CALL_SECONDS = 60.0
GENERATION_SECONDS = 6 * 3600.0
"""Longest a request may wait for the engine: behind a full queue, hours are legitimate."""
KEEP_ALIVE_SECONDS = 3.0
"""Less than vLLM's five: a request must not meet a connection that is just being closed."""
SHORT = 200
"""Characters of a text whose ids are kept."""
SHORT_TEXTS = 10_000
"""Kept of a model at most."""
_JSON = {"content-type": "application/json"}

T = TypeVar("T")


class EngineClient:
    """A client of the engine at `base_url`; one connection pool, an async context manager.

    What it has looked up about the tokenizer it keeps, so a client belongs to one model.
    """

    def __init__(self, base_url: str, http: aiohttp.ClientSession | None = None) -> None:
        self.base_url = base_url
        # aiohttp, not httpx: a fifth of the processor time for a request, which chat pays twice.
        self._http = http or aiohttp.ClientSession(
            base_url,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        )
        self._short_texts: dict[tuple[int, ...], str] = {}
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
        await self._http.close()

    async def complete(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Choice]:
        """`params.n` samples that continue `prompt_ids`, in order of their index."""
        body = {"prompt": list(prompt_ids), **params.body()}
        return choices(await self._post("/v1/completions", body, GENERATION_SECONDS))

    @asynccontextmanager
    async def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams
    ) -> AsyncIterator[AsyncIterator[Choice]]:
        """One sample, piece by piece: what arrives together is one piece. Leaving the block early
        aborts it in the engine."""
        body = {"prompt": list(prompt_ids), "stream": True, **params.body()}
        with engine_errors():
            async with self._http.post(
                "/v1/completions",
                data=orjson.dumps(body),
                headers=_JSON,
                timeout=_timeout(GENERATION_SECONDS),
            ) as response:
                if not response.ok:
                    raise error_of(response.status, await response.read())
                yield pieces(response.content)

    async def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Ids of the chat `messages` in the model's template, up to where its turn begins."""
        body = {"messages": list(messages), "add_generation_prompt": True}
        if tools:
            body["tools"] = list(tools)
        ids: list[int] = (await self._post("/tokenize", body))["tokens"]
        return ids

    async def tokenize(self, text: str) -> list[int]:
        """Ids of a text by itself, without special tokens put before it. Short ones are kept:
        markers repeat."""
        if text in self._texts:
            return self._texts[text]
        body = {"prompt": text, "add_special_tokens": False}
        ids: list[int] = (await self._post("/tokenize", body))["tokens"]
        if len(text) <= SHORT and len(self._texts) < SHORT_TEXTS:
            self._texts[text] = ids
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        text: str = (await self._post("/detokenize", {"tokens": list(ids)}))["prompt"]
        return text

    async def short_text(self, ids: Sequence[int]) -> str:
        """Text of a few tokens alone; holds U+FFFD for a part of a character. Kept: such tokens
        as end a thought or a prompt repeat."""
        key = tuple(ids)
        if key not in self._short_texts:
            if len(self._short_texts) >= SHORT_TEXTS:
                self._short_texts.clear()
            self._short_texts[key] = await self.detokenize(ids)
        return self._short_texts[key]

    async def max_model_len(self) -> int:
        """Longest sequence of prompt and output, in tokens."""
        if self._max_model_len is None:
            models = await self._get("/v1/models")
            self._max_model_len = int(models["data"][0]["max_model_len"])
        return self._max_model_len

    async def weight_version(self) -> str:
        """The label of the weights it has; inference labels them with their sha256."""
        return str((await self._get("/weight_info"))["weight_version"])

    async def version(self) -> str:
        return str((await self._get("/version"))["version"])

    async def _get(self, path: str) -> Any:
        return await self._call("GET", path, CALL_SECONDS)

    async def _post(self, path: str, body: Any, seconds: float = CALL_SECONDS) -> Any:
        return await self._call("POST", path, seconds, data=orjson.dumps(body), headers=_JSON)

    async def _call(self, method: str, path: str, seconds: float, **options: Any) -> Any:
        with engine_errors():
            async with self._http.request(
                method, path, timeout=_timeout(seconds), **options
            ) as response:
                content = await response.read()
        if not response.ok:
            raise error_of(response.status, content)
        return orjson.loads(content)


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)


async def gather_or_cancel(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once and return their results in order.

    When one fails, cancel the others and raise its error, so that no request runs, or is paid
    for, in vain.
    """
    tasks = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
