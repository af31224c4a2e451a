"""The append-only history of an iteration."""

import uuid
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from shared.db.engine import notify
from shared.db.tables import Event


def record(
    session: Session, iteration_id: uuid.UUID, type_: str, message: str, **data: Any
) -> None:
    # Not when its transaction began: a stage may begin and end in one.
    at = func.clock_timestamp()
    session.add(
        Event(iteration_id=iteration_id, type=type_, message=message, data=data, created_at=at)
    )
    notify(session, f"iteration {iteration_id}")
