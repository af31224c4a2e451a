"""What the inference process serves, known to chat without asking the database for each request.

A thread of the event loop looks every second. The inference process announces a swap two seconds
before it, so what the engine begins to write soon after a look which found a model ready is of that
model. Where looks fail or hang, the engine itself is asked which weights it has.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.chat import served_model, tool_calls
from services.chat.served_model import NOTHING_PROMOTED, ServedModel
from shared.errors import InvalidRequest, NotFound, Unavailable
from shared.vllm.answers import EngineFailed, EngineRefused
from shared.vllm.client import EngineClient

log = logging.getLogger(__name__)
POLL_INTERVAL_S = 1.0
FRESH_SECONDS = 1.5
"""Within these of a look's beginning there is no swap which that look has not seen:
`ANNOUNCE_SECONDS` of the inference process are two."""
PATIENCE_SECONDS = 3.0
"""A request waits no longer for a look."""
RETRY_SECONDS = 3
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe_of_tools", "description": "", "parameters": {"type": "object"}},
}


@dataclass(eq=False)
class Served:
    """A served model with the client that knows its tokenizer."""

    model: ServedModel
    engine: EngineClient
    orders: set[tuple[str, ...]] = field(default_factory=set, init=False)
    """Of roles, that its template has taken."""
    _takes_tools: bool | None = field(default=None, init=False)

    async def confirm(self) -> None:
        """Raises `Unavailable` unless the engine has this model's weights."""
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
    """The newest answer to "what is served"; None while nothing is."""

    def __init__(self) -> None:
        self._served: Served | None = None
        self._engines: dict[str, EngineClient] = {}
        self._why = NOTHING_PROMOTED
        self._promoted: tuple[str | None, ...] = ()
        self._looked_at = 0.0
        """When the last look that succeeded began."""
        self._one_look = asyncio.Lock()

    def current(self) -> Served:
        """Raises `Unavailable` while a model is loading or none is promoted."""
        if self._served is None:
            raise Unavailable(self._why, code="model_not_ready", retry_after=RETRY_SECONDS)
        return self._served

    async def named(self, name: str) -> Served:
        """By `name@v1`, or `name` for the version that is served.

        Raises:
            NotFound: another model is served.
            Unavailable: none is yet, or the one named was promoted and is about to take its place.
        """
        if name in self.current().model.names:
            return self.current()
        await self._look_for(name)  # it may have been promoted since the last one
        served = self.current()
        if name in served.model.names:
            return served
        if name in self._promoted:
            raise Unavailable(
                f"{name} is promoted and being loaded; retry shortly",
                code="model_not_ready",
                retry_after=RETRY_SECONDS,
            )
        raise NotFound(
            f"model: no model {name!r} is served; this one is: {served.model.ref}",
            param="model",
            code="model_not_found",
        )

    def check_still(self, served: Served) -> None:
        """Before a phase begins. Raises `Unavailable` where another model has taken the place of
        this one, or is about to."""
        if self._served is not served:
            raise _replaced()

    def is_sure(self, served: Served) -> bool:
        """Whether what the engine has just begun to write is known to be of this model. If not, it
        is to be confirmed: what has begun, ends on the weights it began with."""
        fresh = time.monotonic() - self._looked_at < FRESH_SECONDS
        return self._served is served and fresh

    async def look(self) -> None:
        asked = time.monotonic()
        async with self._one_look:  # an older answer must not replace a newer one
            if self._looked_at > asked:
                return  # one that began since will do
            began = time.monotonic()
            found = await asyncio.to_thread(served_model.read_serving)
            self._looked_at, self._why, self._promoted = began, found.why, found.promoted
            model = found.model
            if model is None:
                self._served = None
            elif self._served is None or self._served.model != model:
                url = model.engine_url
                if url not in self._engines:
                    self._engines[url] = EngineClient(url)
                self._served = Served(model, self._engines[url].for_another_model())

    async def _look_for(self, name: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.look()
        except (SQLAlchemyError, TimeoutError):
            raise Unavailable(
                f"the database is away, and so it is not known whether {name!r} is served",
                code="database_away",
                retry_after=RETRY_SECONDS,
            ) from None

    async def close(self) -> None:
        self._served = None
        self._one_look = asyncio.Lock()  # the one that was belongs to this event loop
        while self._engines:
            await self._engines.popitem()[1].aclose()

    async def keep_looking(self) -> None:
        """What is served goes on being served while looks fail."""
        while True:
            try:
                await self.look()
            except DBAPIError as error:
                log.warning("database away: %s", type(error.orig).__name__)
            except Exception:
                log.exception("cannot see what is served; looking again")
            await asyncio.sleep(POLL_INTERVAL_S)


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
    task = asyncio.create_task(CACHE.keep_looking())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await CACHE.close()
