"""The engines that chat may use and their models, known without a database query for each request.

A thread reads them every second. An inference process announces a swap two seconds before it, so
what an engine begins to write soon after a snapshot that shows its model as ready comes from that
model. If reading fails or hangs, the engine itself is asked which weights it has.
"""

import asyncio
import gc
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.chat import served_model, tool_calls
from services.chat.served_model import NOTHING_PROMOTED, ReadyEngine, ServedModel
from shared.errors import InvalidRequest, NotFound, Unavailable
from shared.vllm.answers import EngineAway, EngineFailed, EngineRefused
from shared.vllm.client import EngineClient

log = logging.getLogger(__name__)
POLL_INTERVAL_S = 1.0
FRESH_SECONDS = 1.5
"""No swap happens in this time after a snapshot was begun that does not announce it:
`ANNOUNCE_SECONDS` of the inference process are two."""
PATIENCE_SECONDS = 3.0
"""Longest that a request waits for a snapshot."""
RETRY_SECONDS = 3
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe_of_tools", "description": "", "parameters": {"type": "object"}},
}


@dataclass(eq=False)
class Served:
    """A model on one of the engines that serve it. A request stays with it to its end."""

    model: ServedModel
    engine: EngineClient
    """It keeps what it has looked up about the model's tokenizer."""
    in_flight: int = field(default=0, init=False)
    """Phases that this process has under way there."""
    last_chosen: int = field(default=0, init=False)
    is_failing: bool = field(default=False, init=False)
    """Set when the engine could not be reached, until its inference process renews the row."""
    is_replaced: bool = field(default=False, init=False)
    """Set when the engine has another model, or is about to."""
    _renewed_at: datetime | None = field(default=None, init=False)
    _seen_at: float = field(default=0.0, init=False)
    _takes_tools: bool | None = field(default=None, init=False)

    def see(self, engine: ReadyEngine, at: float) -> None:
        """Take note of a snapshot, begun at this moment, that shows the engine with this model."""
        if engine.renewed_at != self._renewed_at:
            self._renewed_at, self.is_failing = engine.renewed_at, False
        self._seen_at = at

    @asynccontextmanager
    async def phase(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Make sure that one phase of a request is of this model, and not continued on another.

        The block gets a function to call once the engine has begun to write, and before any of it
        is shown; the end of the block calls it too. It is not called earlier, since the request may
        have been late at the engine. What has begun, ends on the weights it began with.

        Raises:
            Unavailable: another model has taken the place of this one, or is about to.
        """
        if self.is_replaced:
            raise _replaced()
        confirmed = False

        async def confirm() -> None:
            nonlocal confirmed
            is_fresh = time.monotonic() - self._seen_at < FRESH_SECONDS
            if not confirmed and (self.is_replaced or not is_fresh):
                await self._confirm_weights()
            confirmed = True

        self.in_flight += 1
        try:
            yield confirm
            await confirm()
        except EngineAway:
            self.is_failing = True
            raise
        finally:
            self.in_flight -= 1

    async def _confirm_weights(self) -> None:
        try:
            label = await self.engine.weight_version()
        except EngineFailed:
            label = None
        if label != self.model.weights_sha256:
            raise _replaced()

    async def check_takes_tools(self) -> None:
        """Raises `InvalidRequest` unless the model's template has tools in a form we can read."""
        if self._takes_tools is None:
            self._takes_tools = await self._probe_tools()
        if not self._takes_tools:
            raise InvalidRequest(
                f"tools: the template of {self.model.ref} has no tools in the <tool_call> form",
                param="tools",
                code="unsupported_parameter",
            )

    async def _probe_tools(self) -> bool:
        try:
            ids = await self.engine.render([{"role": "user", "content": "?"}], [PROBE_TOOL])
        except EngineRefused:
            return False
        prompt = await self.engine.detokenize(ids)
        return "probe_of_tools" in prompt and tool_calls.BEGIN in prompt


class ServingCache:
    """The newest snapshot of the engines that are ready."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        """By the engine's address."""
        self.models: dict[str, ServedModel] = {}
        """The models that are served, by each name that a request may give. Of several versions,
        the one promoted last has the name alone."""
        self._clients: dict[str, EngineClient] = {}
        self._why = NOTHING_PROMOTED
        self._promoted: tuple[str | None, ...] = ()
        self._refreshed_at = 0.0
        """When the last snapshot that succeeded was begun."""
        self._refreshing = asyncio.Lock()
        self._choices = itertools.count(1)
        # Its own thread: what else this process does in threads must not delay a snapshot.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="serving")

    async def named(self, name: str) -> Served:
        """The engine with the least to do that serves `name@v1`, or `name` in its version promoted
        last.

        Raises:
            NotFound: other models are served.
            Unavailable: none is yet, or the one named was promoted and is about to be served.
        """
        served = self._least_busy(name)
        if self._served and served is None:
            await self._refresh_for(name)  # it may have been promoted since the last one
            served = self._least_busy(name)
        if served is not None:
            served.last_chosen = next(self._choices)
            return served
        if not self._served or name in self._promoted:
            raise _not_ready(self._why or f"{name} is promoted and being loaded; retry shortly")
        refs = ", ".join(dict.fromkeys(model.ref for model in self.models.values()))
        raise NotFound(
            f"model: no model {name!r} is served; this one is: {refs}",
            param="model",
            code="model_not_found",
        )

    def _least_busy(self, name: str) -> Served | None:
        model = self.models.get(name)
        return min(
            (served for served in self._served.values() if served.model == model),
            key=lambda served: (served.is_failing, served.in_flight, served.last_chosen),
            default=None,
        )

    async def refresh(self) -> None:
        asked = time.monotonic()
        async with self._refreshing:  # an older snapshot must not replace a newer one
            if self._refreshed_at > asked:
                return  # one that was begun since will do
            began = time.monotonic()
            loop = asyncio.get_running_loop()
            snapshot = await loop.run_in_executor(self._reader, served_model.read_serving)
            self._refreshed_at, self._why, self._promoted = began, snapshot.why, snapshot.promoted
            before, self._served, self.models = self._served, {}, {}
            for engine in snapshot.engines:
                for name in engine.model.names:
                    self.models.setdefault(name, engine.model)
                served = before.get(engine.url)
                if served is None or served.model != engine.model:
                    served = Served(engine.model, self._client(engine.url).for_another_model())
                served.see(engine, began)
                self._served[engine.url] = served
            for url, served in before.items():
                served.is_replaced = self._served.get(url) is not served

    def _client(self, url: str) -> EngineClient:
        if url not in self._clients:
            self._clients[url] = EngineClient(url)
        return self._clients[url]

    async def _refresh_for(self, name: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.refresh()
        except (SQLAlchemyError, TimeoutError):
            raise Unavailable(
                f"the database is away, and so it is not known whether {name!r} is served",
                code="database_away",
                retry_after=RETRY_SECONDS,
            ) from None

    async def close(self) -> None:
        self._served, self.models = {}, {}
        self._refreshing = asyncio.Lock()  # the one that was belongs to this event loop
        while self._clients:
            await self._clients.popitem()[1].aclose()

    async def refresh_forever(self) -> None:
        """Engines go on being used while refreshing fails."""
        while True:
            try:
                await self.refresh()
            except DBAPIError as error:
                log.warning("database away: %s", type(error.orig).__name__)
            except Exception:
                log.exception("cannot read what is served; reading again")
            await asyncio.sleep(POLL_INTERVAL_S)


def _not_ready(why: str) -> Unavailable:
    return Unavailable(why, code="model_not_ready", retry_after=RETRY_SECONDS)


def _replaced() -> Unavailable:
    return Unavailable(
        "the model is being replaced; ask again", code="model_replaced", retry_after=RETRY_SECONDS
    )


CACHE = ServingCache()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    # What start-up has made stays; the collector need not walk through it in a request's time.
    gc.collect()
    gc.freeze()
    task = asyncio.create_task(CACHE.refresh_forever())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await CACHE.close()
