"""The append-only history of an iteration."""

import uuid
from typing import Any

from sqlalchemy.orm import Session

from shared.db import notify
from shared.models import Event


def record(
    session: Session, iteration_id: uuid.UUID, type_: str, message: str, **data: Any
) -> None:
    session.add(Event(iteration_id=iteration_id, type=type_, message=message, data=data))
    notify(session, f"iteration {iteration_id}")
