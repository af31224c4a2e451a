"""What the inference process serves, known to chat without asking the database for each request.

A thread of the event loop looks every second. The inference process announces a swap two seconds
before it, so a phase that begins while this says a model is ready runs on that model's weights.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from shared import model_store
from shared.db import transaction
from shared.engine_client import EngineClient
from shared.errors import NotFound, Unavailable
from shared.formats import NONE, ThoughtFormat
from shared.models import Model, Serving

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
STALE = timedelta(seconds=60)
"""The inference process renews its row at least every ten seconds while its engine works."""
RETRY_SECONDS = 3
DEFAULT_THOUGHT_TOKENS = 1024


@dataclass(frozen=True)
class ServedModel:
    """The model that chat answers with. `thought_tokens` is the budget it was trained with."""

    id: uuid.UUID
    name: str
    version: int
    created: int
    format: ThoughtFormat
    thought_tokens: int
    engine_url: str

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.version}"


@dataclass(frozen=True)
class Served:
    """A served model with the client that knows its tokenizer."""

    model: ServedModel
    engine: EngineClient


class ServingCache:
    """The newest answer to "what is served"; None while nothing is."""

    def __init__(self) -> None:
        self._served: Served | None = None
        self._engines: dict[str, EngineClient] = {}
        self._why = "no model is served yet; promote one with POST /models/{id}/promote"

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
        if name == await asyncio.to_thread(promoted_ref):
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
        model, self._why = await asyncio.to_thread(read_serving)
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


def read_serving() -> tuple[ServedModel | None, str]:
    """The model that is ready, or None with the reason."""
    query = (
        select(Serving, Model)
        .outerjoin(Model, Serving.model_id == Model.id)
        .where(Serving.updated_at > func.now() - STALE)
        .order_by(Serving.updated_at.desc())
    )
    with transaction() as session:
        rows = session.execute(query).all()
        for serving, model in rows:
            if serving.state == "ready" and model is not None:
                return _served_model(serving.engine_url, model), ""
    if not rows:
        return None, "no model is served yet; promote one with POST /models/{id}/promote"
    state, detail = rows[0][0].state, rows[0][0].detail
    if state == "failed":
        return None, f"the promoted model cannot be served: {detail}"
    return None, f"the model is {state}; retry shortly"


def promoted_ref() -> str | None:
    """Of the model that is to be served, whether or not it is loaded yet."""
    with transaction() as session:
        model = model_store.last_promoted(session)
        return model_store.ref(model) if model else None


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
        engine_url=engine_url,
    )


CACHE = ServingCache()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(CACHE.keep_looking())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await CACHE.close()
