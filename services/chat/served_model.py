"""The models that chat can answer with, read from the database."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db.engine import failfast_engine
from shared.db.tables import Model, Serving
from shared.registry import models as model_store
from shared.schemas.requests import Effort
from shared.thinking.formats import NONE, ThoughtFormat

NOTHING_PROMOTED = "no model is served yet; promote one with POST /models/{id}/promote"
STALE = timedelta(seconds=60)
"""An inference process renews its row within some twenty seconds while its engine works."""
DEFAULT_THOUGHT_TOKENS = 1024
EFFORT_SHARE: Mapping[Effort, float] = {
    "none": 0, "minimal": 0.125, "low": 0.25, "medium": 1, "high": 2, "xhigh": 4, "max": 4,
}  # fmt: skip
"""Thought budget as a share of the budget that the model was trained with."""


@dataclass(frozen=True)
class ServedModel:
    """A model that chat can answer with."""

    id: uuid.UUID
    name: str
    version: int
    created: int
    weights_sha256: str
    format: ThoughtFormat
    thought_tokens: int
    """Budget of a thought in tokens, as in training."""
    thought_budgets: dict[str, int]
    """Tokens for an effort, where the promotion has set them."""

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.version}"

    @property
    def names(self) -> tuple[str, str]:
        """Names that a request may call it by."""
        return self.ref, self.name

    def thought_budget(self, effort: Effort) -> int:
        """Maximum tokens of a thought."""
        given = self.thought_budgets.get(effort)
        return round(self.thought_tokens * EFFORT_SHARE[effort]) if given is None else given


@dataclass(frozen=True)
class ReadyEngine:
    """An engine that has a model ready, by the row that its inference process renews."""

    url: str
    model: ServedModel
    renewed_at: datetime


@dataclass(frozen=True)
class Snapshot:
    """All engines that are ready, or the reason why none is."""

    engines: tuple[ReadyEngine, ...] = ()
    """Those of the model promoted last come first."""
    why: str = ""
    promoted: tuple[str | None, ...] = ()
    """Names of the model that is to be served."""


def read_serving() -> Snapshot:
    fresh = (Serving.updated_at > func.now() - STALE).label("fresh")
    query = (
        select(Serving, Model, fresh)
        .outerjoin(Model, Serving.model_id == Model.id)
        .order_by(Model.promoted_at.desc().nulls_last(), Serving.engine_url)
    )
    with Session(failfast_engine()) as session:
        promoted = model_store.last_promoted(session)
        rows = session.execute(query).all()
    names = (model_store.ref(promoted), promoted.name) if promoted else ()
    engines = tuple(
        ReadyEngine(serving.engine_url, _served_model(model), serving.updated_at)
        for serving, model, is_fresh in rows
        if is_fresh and serving.state == "ready" and model and model.name
    )
    if engines:
        return Snapshot(engines, "", names)
    if promoted is None:
        return Snapshot(why=NOTHING_PROMOTED)
    latest = max((row[0] for row in rows), key=lambda row: row.updated_at, default=None)
    return Snapshot((), _why_not(promoted, latest), names)


def _why_not(promoted: Model, latest: Serving | None) -> str:
    """An inference process writes its row when a start begins and when it has failed; it does not
    renew the row during a start, nor while it waits to try again."""
    wanted = model_store.ref(promoted)
    if promoted.name is None:
        return f"the promoted checkpoint {wanted} has no name; promote it again with one"
    since = promoted.promoted_at
    if latest and latest.state == "failed" and since and since < latest.updated_at:
        return f"{wanted} failed to load and will be tried again: {latest.detail}"
    return f"{wanted} is being loaded; retry shortly"


def _served_model(model: Model) -> ServedModel:
    sampling = model.lineage.get("config", {}).get("sampling", {})
    assert model.name is not None
    assert model.version is not None
    assert model.weights_sha256 is not None
    return ServedModel(
        id=model.id,
        name=model.name,
        version=model.version,
        created=int(model.created_at.timestamp()),
        weights_sha256=model.weights_sha256,
        format=ThoughtFormat.model_validate(model.thought_format or NONE.model_dump()),
        thought_tokens=int(sampling.get("max_thought_tokens", DEFAULT_THOUGHT_TOKENS)),
        thought_budgets=model.thought_budgets or {},
    )
