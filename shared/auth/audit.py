"""Who did what, written in the transaction that does it."""

from typing import Any

from sqlalchemy.orm import Session

from shared import log
from shared.auth.keys import CALLER
from shared.db.tables import AuditEvent


def record(session: Session, action: str, subject: object, **data: Any) -> None:
    """By whoever's request is being answered; `data` holds no prompt, thought or key."""
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
