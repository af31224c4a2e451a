"""What the inference process serves, known to chat without asking the database for each request.

A thread of the event loop looks every second. The inference process announces a swap two seconds
before it, so a phase that begins while this says a model is ready runs on that model's weights.
"""

import asyncio
import gc
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from services.coordinator.chat import tool_calls
from shared import model_store
from shared.db import transaction
from shared.engine_answers import EngineRefused
from shared.engine_client import EngineClient
from shared.errors import InvalidRequest, NotFound, Unavailable
from shared.formats import NONE, ThoughtFormat
from shared.models import Model, Serving
from shared.schemas import Effort

log = logging.getLogger(__name__)
NOTHING_SERVED = "no model is served yet; promote one with POST /models/{id}/promote"
LOOK_SECONDS = 1.0
STALE = timedelta(seconds=60)
"""The inference process renews its row at least every ten seconds while its engine works."""
RETRY_SECONDS = 3
DEFAULT_THOUGHT_TOKENS = 1024
EFFORT_SHARE: Mapping[Effort, float] = {
    "none": 0, "minimal": 0.125, "low": 0.25, "medium": 1, "high": 2, "xhigh": 4, "max": 4,
}  # fmt: skip
"""Thought budget as a share of the one that the model was trained with."""
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe_of_tools", "description": "", "parameters": {"type": "object"}},
}


@dataclass(frozen=True)
class ServedModel:
    """The model that chat answers with. `thought_tokens` is the budget it was trained with."""

    id: uuid.UUID
    name: str
    version: int
    created: int
    format: ThoughtFormat
    thought_tokens: int
    thought_budgets: dict[str, int]
    """Tokens for an effort, where its promotion has set them."""
    engine_url: str

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.version}"

    def thought_budget(self, effort: Effort) -> int:
        """Most tokens of a thought."""
        given = self.thought_budgets.get(effort)
        return round(self.thought_tokens * EFFORT_SHARE[effort]) if given is None else given


@dataclass(eq=False)
class Served:
    """A served model with the client that knows its tokenizer."""

    model: ServedModel
    engine: EngineClient
    _takes_tools: bool | None = field(default=None, init=False)

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
        self._why = NOTHING_SERVED
        self._promoted: str | None = None
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
        served = self.current()
        if name in (served.model.ref, served.model.name):
            return served
        async with self._one_look:  # it may have been promoted since the last one
            await self.look()
        if name == self._promoted:
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

    def still(self, served: Served) -> None:
        """Raises `Unavailable` if another model has taken its place, or is about to."""
        if self._served is not served:
            raise Unavailable(
                "the model is being replaced; ask again",
                code="model_replaced",
                retry_after=RETRY_SECONDS,
            )

    async def look(self) -> None:
        model, self._why, self._promoted = await asyncio.to_thread(read_serving)
        if model is None:
            self._served = None
        elif self._served is None or self._served.model != model:
            url = model.engine_url
            if url not in self._engines:
                self._engines[url] = EngineClient(url)
            self._served = Served(model, self._engines[url].for_another_model())

    async def close(self) -> None:
        self._served = None
        while self._engines:
            await self._engines.popitem()[1].aclose()

    async def keep_looking(self) -> None:
        while True:
            try:
                await self.look()
            except DBAPIError as error:
                # What is served goes on being served while Postgres is away.
                log.warning("database away: %s", type(error.orig).__name__)
            await asyncio.sleep(LOOK_SECONDS)


def read_serving() -> tuple[ServedModel | None, str, str | None]:
    """The model that is ready, or None with the reason; and which one is to be served."""
    query = (
        select(Serving, Model)
        .outerjoin(Model, Serving.model_id == Model.id)
        .where(Serving.updated_at > func.now() - STALE)
        .order_by(Serving.updated_at.desc())
    )
    with transaction() as session:
        rows = session.execute(query).all()
        promoted = model_store.last_promoted(session)
        wanted = model_store.ref(promoted) if promoted else None
        for serving, model in rows:
            if serving.state == "ready" and model is not None:
                return _served_model(serving.engine_url, model), "", wanted
    if not rows:
        return None, NOTHING_SERVED, wanted
    state, detail = rows[0][0].state, rows[0][0].detail
    if state == "failed":
        return None, f"the promoted model cannot be served: {detail}", wanted
    return None, f"the model is {state}; retry shortly", wanted


def _served_model(engine_url: str, model: Model) -> ServedModel:
    sampling = model.lineage.get("config", {}).get("sampling", {})
    assert model.name is not None
    assert model.version is not None
    return ServedModel(
        id=model.id,
        name=model.name,
        version=model.version,
        created=int(model.created_at.timestamp()),
        format=ThoughtFormat.model_validate(model.thought_format or NONE.model_dump()),
        thought_tokens=int(sampling.get("max_thought_tokens", DEFAULT_THOUGHT_TOKENS)),
        thought_budgets=model.thought_budgets or {},
        engine_url=engine_url,
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
