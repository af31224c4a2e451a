"""Finding models: by id, by `name@v3`, or by `name` for the latest version."""

import re
import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound
from shared.models import Model

_VERSIONED = re.compile(r"^(?P<name>[^@]+)@v(?P<version>\d{1,9})$")


def ref(model: Model) -> str:
    """`name@v3`, or the id of a checkpoint that has no name."""
    return f"{model.name}@v{model.version}" if model.name else str(model.id)


def find(session: Session, reference: str) -> Model | None:
    try:
        return session.get(Model, uuid.UUID(reference))
    except ValueError:
        pass
    if match := _VERSIONED.match(reference):
        query = select(Model).where(
            Model.name == match["name"], Model.version == int(match["version"])
        )
    else:
        query = select(Model).where(Model.name == reference).order_by(Model.version.desc()).limit(1)
    return session.scalar(query)


def resolve(session: Session, reference: str, *, param: str) -> Model:
    """The model, whose weights are there to be used; errors name the field `param`."""
    model = find(session, reference)
    if model is None:
        raise NotFound(
            f"{param}: no model {reference!r}; register it with POST /models",
            param=param,
            code="model_not_found",
        )
    if model.path is None:
        raise Conflict(
            f"{param}: model {reference!r} is still being registered, or that failed; "
            f"see GET /models/{model.id}",
            param=param,
            code="model_not_ready",
        )
    return model


def last_promoted(session: Session) -> Model | None:
    """The model that chat is to answer with."""
    query = select(Model).where(Model.promoted_at.is_not(None))
    return session.scalar(query.order_by(Model.promoted_at.desc()).limit(1))
