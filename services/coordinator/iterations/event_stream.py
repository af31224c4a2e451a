"""An iteration's events: as a list, or server-sent until it ends."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from services.coordinator.iterations.progress import progress_of
from services.coordinator.iterations.state import find
from shared.base import ResponseModel
from shared.db.engine import transaction
from shared.db.tables import Event
from shared.errors import InvalidRequest
from shared.web.paging import Limit, Page, paginate_by_id, unix
from shared.web.session import SessionDep

router = APIRouter(tags=["iterations"])
POLL_SECONDS = 0.5
BIGINT = 2**63 - 1
EventId = Annotated[int, Query(ge=0, le=BIGINT)]


class EventRead(ResponseModel):
    id: int
    object: Literal["event"]
    type: str
    message: str
    data: dict[str, Any]
    created_at: int


def _read(row: Event) -> EventRead:
    return EventRead(
        id=row.id,
        object="event",
        type=row.type,
        message=row.message,
        data=row.data,
        created_at=unix(row.created_at),
    )


@router.get("/iterations/{iteration_id}/events", response_model=Page[EventRead])
def list_events(
    iteration_id: uuid.UUID,
    request: Request,
    session: SessionDep,
    after: EventId | None = None,
    limit: Limit = 100,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """With `Accept: text/event-stream` live, resumed by `Last-Event-ID`; else a page."""
    find(session, iteration_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        resumed = _event_id(last_event_id) if last_event_id else after
        return StreamingResponse(
            _stream(iteration_id, resumed or 0),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    query = select(Event).where(Event.iteration_id == iteration_id)
    return paginate_by_id(session, query, Event, after, limit, _read)


def _event_id(header: str) -> int:
    """Refused here, as long as there is a status to refuse it with."""
    if not header.isdecimal() or len(header) > len(str(BIGINT)) or int(header) > BIGINT:
        raise InvalidRequest("Last-Event-ID: is no id of an event", param="Last-Event-ID")
    return int(header)


async def _stream(iteration_id: uuid.UUID, after: int) -> AsyncIterator[str]:
    """Events as they are recorded, and progress (without an id) when it has changed."""
    shown = ""
    while True:
        rows, progress, ended = await asyncio.to_thread(_look, iteration_id, after)
        for row in rows:
            after = row.id
            yield f"id: {row.id}\nevent: {row.type}\ndata: {row.model_dump_json()}\n\n"
        if progress != shown:
            shown = progress
            yield f"event: progress\ndata: {progress}\n\n"
        if ended:
            return
        await asyncio.sleep(POLL_SECONDS)


def _look(iteration_id: uuid.UUID, after: int) -> tuple[list[EventRead], str, bool]:
    with transaction() as session:
        iteration = find(session, iteration_id)
        query = select(Event).where(Event.iteration_id == iteration_id, Event.id > after)
        rows = [_read(row) for row in session.scalars(query.order_by(Event.id))]
        progress = json.dumps(progress_of(session, iteration).model_dump())
        return rows, progress, iteration.status.terminal
