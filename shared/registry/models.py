"""Finding models: by id, by `name@v3`, or by `name` for the latest version."""

import re
import uuid
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import Model
from shared.errors import Conflict, NotFound
from shared.settings import get_settings

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


def resolve(session: Session, reference: str, *, param: str, change: bool = False) -> Model:
    """The model, whose weights are there to be used; errors name the field `param`.

    They stay there until the caller's transaction ends. Pruning locks a row FOR UPDATE, and looks
    in a second statement for what refers to it. A caller that was first here has committed by
    then, so its use is seen; one that comes second waits here, and sees the weights gone.
    FOR KEY SHARE is the weakest lock that conflicts: others may begin with the same model.
    `change` is for callers that name the model.
    """
    model = find(session, reference)
    if model is not None:
        session.refresh(model, with_for_update={"read": not change, "key_share": not change})
    if model is None:
        raise NotFound(
            f"{param}: no model {reference!r}; register it with POST /models",
            param=param,
            code="model_not_found",
        )
    if pruned(model):
        raise Conflict(
            f"{param}: the weights of checkpoint {reference!r} were pruned",
            param=param,
            code="model_pruned",
        )
    if model.path is None:
        raise Conflict(
            f"{param}: model {reference!r} is still being registered, or that failed; "
            f"see GET /models/{model.id}, or name another version of it (NAME@vN)",
            param=param,
            code="model_not_ready",
        )
    return model


def pruned(model: Model) -> bool:
    """Tell if the model had weights that were pruned."""
    return model.path is None and model.weights_sha256 is not None


def training_folder(job_id: uuid.UUID) -> Path:
    """The folder of a training, with a folder for each attempt. Its checkpoints stay there."""
    return get_settings().model_store / "checkpoints" / str(job_id)


def last_promoted(session: Session) -> Model | None:
    """The model that chat is to answer with."""
    query = select(Model).where(Model.promoted_at.is_not(None))
    return session.scalar(query.order_by(Model.promoted_at.desc()).limit(1))
