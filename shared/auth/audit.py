"""The audit log: events are written in the transaction that does what they tell."""

from typing import Any

from sqlalchemy.orm import Session

from shared import log
from shared.auth.keys import CALLER
from shared.db.tables import AuditEvent


def record(session: Session, action: str, subject: object, **data: Any) -> None:
    """Record an action of the current caller. `data` must hold no prompt, thought or key."""
    caller = CALLER.get()
    session.add(
        AuditEvent(
            key_id=caller and caller.key_id,
            action=action,
            subject=str(subject),
            data=data,
            request_id=log.request_id(),
        )
    )
