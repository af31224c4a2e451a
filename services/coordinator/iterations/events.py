"""The append-only history of an iteration: recorded, listed, and streamed until it ends."""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.coordinator.iterations.progress import progress_of
from services.coordinator.iterations.state import find
from shared.base import ResponseModel, Unix
from shared.db.engine import is_away, notify, transaction
from shared.db.tables import Event
from shared.errors import InvalidRequest
from shared.web.paging import Limit, Page, paginate_by_id
from shared.web.session import SessionDep

router = APIRouter(tags=["iterations"])
logger = logging.getLogger(__name__)
POLL_INTERVAL_S = 0.5
KEEP_ALIVE_S = 15.0
"""Proxies cut a stream that is silent for longer."""
BIGINT = 2**63 - 1
EventId = Annotated[int, Query(ge=0, le=BIGINT)]
_POLLERS = ThreadPoolExecutor(2, thread_name_prefix="events")
"""Threads of their own: watchers must not take those that chat and other routes share."""


def record(
    session: Session, iteration_id: uuid.UUID, type_: str, message: str, **data: Any
) -> None:
    # Not the time when the transaction began: a stage may begin and end in one.
    at = func.clock_timestamp()
    session.add(
        Event(iteration_id=iteration_id, type=type_, message=message, data=data, created_at=at)
    )
    notify(session, f"iteration {iteration_id}")


class EventRead(ResponseModel):
    """Something that happened to an iteration."""

    id: int
    object: Literal["event"] = "event"
    type: str
    """`status` or `stage`."""
    message: str
    data: dict[str, Any]
    created_at: Unix


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
    return paginate_by_id(session, query, Event, after, limit, EventRead.model_validate)


def _event_id(header: str) -> int:
    """Refused here, while there still is a status to refuse it with."""
    if not header.isdecimal() or len(header) > len(str(BIGINT)) or int(header) > BIGINT:
        raise InvalidRequest("Last-Event-ID: is no id of an event", param="Last-Event-ID")
    return int(header)


async def _stream(iteration_id: uuid.UUID, after: int) -> AsyncIterator[str]:
    """Events as they are recorded, progress (without an id) when it has changed, and comments
    that keep the connection alive."""
    shown = ""
    async with _watching(iteration_id) as feed:
        while True:
            changed, ended = feed.changed, feed.ended
            for event in [e for e in feed.events if e.id > after]:
                after = event.id
                yield f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
            if feed.progress != shown:
                shown = feed.progress
                yield f"event: progress\ndata: {shown}\n\n"
            if ended:
                return
            try:
                await asyncio.wait_for(changed.wait(), KEEP_ALIVE_S)
            except TimeoutError:
                yield ": keep-alive\n\n"


class _Feed:
    """Polls an iteration for all its watchers, so that fifty cost what one does."""

    def __init__(self, iteration_id: uuid.UUID) -> None:
        self.events: list[EventRead] = []
        self.progress = ""
        self.ended = False
        self.changed = asyncio.Event()
        """Set at the next change; the one after that has an event of its own."""
        self.watchers = 0
        self.task = asyncio.create_task(self._poll(iteration_id))

    async def _poll(self, iteration_id: uuid.UUID) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                last = self.events[-1].id if self.events else 0
                try:
                    polled = await loop.run_in_executor(_POLLERS, _read_new, iteration_id, last)
                    if self._update(*polled):
                        return
                except Exception as error:
                    if not is_away(error):
                        raise
                    logger.warning("events: the database is away: %s", type(error).__name__)
                await asyncio.sleep(POLL_INTERVAL_S)
        finally:
            self.ended = True
            self.changed.set()

    def _update(self, new: list[EventRead], progress: str, ended: bool) -> bool:
        if new or progress != self.progress:
            self.events += new
            self.progress = progress
            self.changed.set()
            self.changed = asyncio.Event()
        return ended


_feeds: dict[uuid.UUID, _Feed] = {}


@asynccontextmanager
async def _watching(iteration_id: uuid.UUID) -> AsyncIterator[_Feed]:
    feed = _feeds.get(iteration_id)
    if feed is None or feed.ended:  # one that was resumed has a new feed
        feed = _feeds[iteration_id] = _Feed(iteration_id)
    feed.watchers += 1
    try:
        yield feed
    finally:
        feed.watchers -= 1
        if feed.watchers == 0:
            feed.task.cancel()
            if _feeds.get(iteration_id) is feed:
                del _feeds[iteration_id]


def _read_new(iteration_id: uuid.UUID, after: int) -> tuple[list[EventRead], str, bool]:
    with transaction() as session:
        iteration = find(session, iteration_id)
        query = select(Event).where(Event.iteration_id == iteration_id, Event.id > after)
        rows = [EventRead.model_validate(row) for row in session.scalars(query.order_by(Event.id))]
        progress = progress_of(session, [iteration])[iteration_id].model_dump()
        return rows, json.dumps(progress), iteration.status.terminal
