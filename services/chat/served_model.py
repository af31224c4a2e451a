"""What the database says of the model that chat answers with."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db.engine import failfast_engine
from shared.db.tables import Model, Serving
from shared.registry import models as model_store
from shared.schemas.requests import Effort
from shared.thinking.formats import NONE, ThoughtFormat

NOTHING_PROMOTED = "no model is served yet; promote one with POST /models/{id}/promote"
STALE = timedelta(seconds=60)
"""The inference process renews its row within some twenty seconds while its engine works."""
DEFAULT_THOUGHT_TOKENS = 1024
EFFORT_SHARE: Mapping[Effort, float] = {
    "none": 0, "minimal": 0.125, "low": 0.25, "medium": 1, "high": 2, "xhigh": 4, "max": 4,
}  # fmt: skip
"""Thought budget as a share of the one that the model was trained with."""


@dataclass(frozen=True)
class ServedModel:
    """The model that chat answers with. `thought_tokens` is the budget it was trained with."""

    id: uuid.UUID
    name: str
    version: int
    created: int
    weights_sha256: str
    format: ThoughtFormat
    thought_tokens: int
    thought_budgets: dict[str, int]
    """Tokens for an effort, where its promotion has set them."""
    engine_url: str

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.version}"

    @property
    def names(self) -> tuple[str, str]:
        """What requests may call it."""
        return self.ref, self.name

    def thought_budget(self, effort: Effort) -> int:
        """Most tokens of a thought."""
        given = self.thought_budgets.get(effort)
        return round(self.thought_tokens * EFFORT_SHARE[effort]) if given is None else given


@dataclass(frozen=True)
class Look:
    """The model that is ready, or None and the reason."""

    model: ServedModel | None
    why: str = NOTHING_PROMOTED
    promoted: tuple[str | None, ...] = ()
    """Names of the one that is to be served."""


def read_serving() -> Look:
    fresh = (Serving.updated_at > func.now() - STALE).label("fresh")
    query = (
        select(Serving, Model, fresh)
        .outerjoin(Model, Serving.model_id == Model.id)
        .order_by(Serving.updated_at.desc())
    )
    with Session(failfast_engine()) as session:
        promoted = model_store.last_promoted(session)
        rows = session.execute(query).all()
    names = (model_store.ref(promoted), promoted.name) if promoted else ()
    for serving, model, is_fresh in rows:
        if is_fresh and serving.state == "ready" and model and model.name:
            return Look(_served_model(serving.engine_url, model), "", names)
    if promoted is None:
        return Look(None)
    return Look(None, _why_not(promoted, rows[0][0] if rows else None), names)


def _why_not(promoted: Model, latest: Serving | None) -> str:
    """The inference process writes its row when a start begins and when it has failed, not while
    it goes on or waits for the next one."""
    wanted = model_store.ref(promoted)
    if promoted.name is None:
        return f"the promoted checkpoint {wanted} has no name; promote it again with one"
    since = promoted.promoted_at
    if latest and latest.state == "failed" and since and since < latest.updated_at:
        return f"{wanted} failed to load and will be tried again: {latest.detail}"
    return f"{wanted} is being loaded; retry shortly"


def _served_model(engine_url: str, model: Model) -> ServedModel:
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
        engine_url=engine_url,
    )
