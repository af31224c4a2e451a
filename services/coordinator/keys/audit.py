"""What was done with which key."""

import uuid
from typing import Any, Literal

from fastapi import APIRouter
from sqlalchemy import select

from shared.base import ResponseModel
from shared.db.tables import ApiKey, AuditEvent
from shared.web.paging import Limit, Page, page_by_number, unix
from shared.web.session import SessionDep

router = APIRouter(tags=["keys"])


class AuditRead(ResponseModel):
    id: int
    object: Literal["audit_event"] = "audit_event"
    key_id: uuid.UUID | None
    """None: the platform itself, or who has the service key."""
    key_name: str | None
    action: str
    subject: str
    data: dict[str, Any]
    request_id: str | None
    created_at: int


@router.get("/audit")
def list_events(
    session: SessionDep, after: int | None = None, limit: Limit = 100
) -> Page[AuditRead]:
    """Oldest first, to be read on from where one was."""
    query = select(AuditEvent, ApiKey.name).outerjoin(ApiKey, ApiKey.id == AuditEvent.key_id)
    return page_by_number(session, query, AuditEvent, after, limit, _read)


def _read(row: AuditEvent, key_name: str | None) -> AuditRead:
    return AuditRead(
        id=row.id,
        key_id=row.key_id,
        key_name=key_name,
        action=row.action,
        subject=row.subject,
        data=row.data,
        request_id=row.request_id,
        created_at=unix(row.created_at),
    )
