"""OpenAI's cursor pages: newest first, `after` is the last id of the page before."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    TypeVarTuple,
    overload,
)

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from shared.errors import InvalidRequest


class HasId(Protocol):
    """A read model with an id, which the next page continues after."""

    @property
    def id(self) -> uuid.UUID | int | str: ...


Limit = Annotated[int, Query(ge=1, le=1000)]
Item = TypeVar("Item")
Listed = TypeVar("Listed", bound=HasId)
Columns = TypeVarTuple("Columns")


class Page(BaseModel, Generic[Item]):
    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


@overload
def unix(moment: datetime) -> int: ...
@overload
def unix(moment: datetime | None) -> int | None: ...
def unix(moment: datetime | None) -> int | None:
    """Seconds since 1970, as OpenAI writes times. A read model declares `Unix` instead."""
    return None if moment is None else int(moment.timestamp())


def _page(data: list[Listed], has_more: bool) -> Page[Listed]:
    return Page(
        object="list",
        data=data,
        first_id=str(data[0].id) if data else None,
        last_id=str(data[-1].id) if data else None,
        has_more=has_more,
    )


def paginate(
    session: Session,
    query: Select[*Columns],
    table: Any,
    after: uuid.UUID | None,
    limit: int,
    read: Callable[[*Columns], Listed],
) -> Page[Listed]:
    """Make a page, newest first, of a table that has `created_at` and `id`.

    `read` gets the columns of a row, of which the first is the `table`'s.
    """
    if after is not None:
        last = session.get(table, after)
        if last is None:
            raise InvalidRequest(f"no row {after} to continue after", param="after")
        query = query.where(tuple_(table.created_at, table.id) < (last.created_at, last.id))
    query = query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    rows = session.execute(query).all()
    return _page([read(*row) for row in rows[:limit]], len(rows) > limit)


def paginate_by_id(
    session: Session,
    query: Select[*Columns],
    table: Any,
    after: int | None,
    limit: int,
    read: Callable[[*Columns], Listed],
) -> Page[Listed]:
    """Make a page in the order of a numeric id, oldest first: bulk results are read front to back.

    `read` gets the columns of a row, of which the first is the `table`'s.
    """
    if after is not None:
        query = query.where(table.id > after)
    rows = session.execute(query.order_by(table.id).limit(limit + 1)).all()
    return _page([read(*row) for row in rows[:limit]], len(rows) > limit)
