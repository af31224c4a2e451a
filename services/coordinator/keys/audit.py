"""What was done with which key."""

import uuid
from typing import Any, Literal

from fastapi import APIRouter
from sqlalchemy import select

from shared.base import ResponseModel, Unix
from shared.db.tables import ApiKey, AuditEvent
from shared.web.paging import Limit, Page, paginate_by_id
from shared.web.session import SessionDep

router = APIRouter(tags=["keys"])


class AuditRead(ResponseModel):
    id: int
    object: Literal["audit_event"] = "audit_event"
    key_id: uuid.UUID | None
    """None: the platform itself, or who has the service key."""
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
    """Oldest first, to be read on from where one was."""
    query = select(AuditEvent, ApiKey.name).outerjoin(ApiKey, ApiKey.id == AuditEvent.key_id)
    return paginate_by_id(session, query, AuditEvent, after, limit, _read)


def _read(event: AuditEvent, key_name: str | None) -> AuditRead:
    return AuditRead.model_validate(event).model_copy(update={"key_name": key_name})
