"""OpenAI's cursor pages: newest first, `after` is the last id of the page before."""

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, TypeVarTuple, overload

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from shared.errors import InvalidRequest

Limit = Annotated[int, Query(ge=1, le=1000)]
Row = TypeVar("Row")
Item = TypeVar("Item", bound=BaseModel)
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
    """As OpenAI writes it."""
    return None if moment is None else int(moment.timestamp())


def listed(data: list[Item], has_more: bool) -> Page[Item]:
    ids = [str(getattr(item, "id")) for item in (data[:1] + data[-1:])]  # noqa: B009
    return Page(
        object="list",
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=has_more,
    )


def page(
    session: Session,
    query: Select[Row],
    table: Any,
    after: uuid.UUID | None,
    limit: int,
    read: Callable[[Row], Item],
) -> Page[Item]:
    """A page of a table that has `created_at` and `id`."""
    if after is not None:
        last = session.get(table, after)
        if last is None:
            raise InvalidRequest(f"no row {after} to continue after", param="after")
        query = query.where(tuple_(table.created_at, table.id) < (last.created_at, last.id))
    query = query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    rows = list(session.scalars(query))
    return listed([read(row) for row in rows[:limit]], len(rows) > limit)


def page_by_number(
    session: Session,
    query: Select[*Columns],
    table: Any,
    after: int | None,
    limit: int,
    read: Callable[[*Columns], Item],
) -> Page[Item]:
    """A page in the order of a numeric id, oldest first: bulk results are read front to back.

    `read` gets the columns of a row, of which the first is the `table`'s.
    """
    if after is not None:
        query = query.where(table.id > after)
    rows = session.execute(query.order_by(table.id).limit(limit + 1)).all()
    return listed([read(*row) for row in rows[:limit]], len(rows) > limit)
