"""The route that lists what was done with which key."""

import uuid
from datetime import timedelta
from typing import Any, Literal

from fastapi import APIRouter
from sqlalchemy import func, select

from shared.base import ResponseModel, Unix
from shared.db.tables import ApiKey, AuditEvent
from shared.web.paging import Limit, Page, paginate_by_id
from shared.web.session import SessionDep

router = APIRouter(tags=["keys"])
SETTLED_AFTER = timedelta(seconds=5)
"""Age of the events that are listed. Ids are given before a transaction commits: a reader that
continued after a newer one would never see what commits behind it."""


class AuditRead(ResponseModel):
    id: int
    object: Literal["audit_event"] = "audit_event"
    key_id: uuid.UUID | None
    """Id of the key used; null for the platform itself and for the service key."""
    key_name: str | None = None
    action: str
    subject: str
    data: dict[str, Any]
    request_id: str | None
    created_at: Unix


@router.get("/audit")
def list_events(
    session: SessionDep, after: int | None = None, limit: Limit = 100
) -> Page[AuditRead]:
    """Events of more than five seconds ago, oldest first: continue after the last id you have."""
    query = (
        select(AuditEvent, ApiKey.name)
        .outerjoin(ApiKey, ApiKey.id == AuditEvent.key_id)
        .where(AuditEvent.created_at < func.clock_timestamp() - SETTLED_AFTER)
    )
    return paginate_by_id(session, query, AuditEvent, after, limit, _read)


def _read(event: AuditEvent, key_name: str | None) -> AuditRead:
    return AuditRead.model_validate(event).model_copy(update={"key_name": key_name})
