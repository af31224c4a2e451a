"""`Idempotency-Key` on POSTs that create: the same body gets the same answer for a day."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

from fastapi import Header, Response
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import InvalidRequest
from shared.models import IdempotencyKey

KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Read = TypeVar("Read", bound=BaseModel)
KEPT = timedelta(hours=24)


class KeyReused(InvalidRequest):
    status = 422
    code = "idempotency_key_reused"


def once(
    session: Session,
    response: Response,
    key: str | None,
    route: str,
    body: BaseModel,
    create: Callable[[], Read],
    read: type[Read],
) -> Read:
    """Run `create` once for a key; a repeat gets the stored answer and `Idempotent-Replayed`.

    The key's row is inserted first, so a repeat that races waits for the first one's commit.
    """
    if key is None:
        return create()
    session.execute(
        delete(IdempotencyKey).where(IdempotencyKey.created_at < datetime.now(UTC) - KEPT)
    )
    digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    values = {"key": key, "route": route, "body_sha256": digest, "status": 0, "response": {}}
    mine = session.execute(
        insert(IdempotencyKey).values(values).on_conflict_do_nothing().returning(IdempotencyKey.key)
    ).scalar()
    row = session.get_one(IdempotencyKey, (key, route))
    if mine is None:
        if row.body_sha256 != digest:
            raise KeyReused(
                "Idempotency-Key: used before with another body", param="Idempotency-Key"
            )
        response.headers["Idempotent-Replayed"] = "true"
        response.status_code = row.status
        return read.model_validate(row.response)
    created = create()
    row.status = response.status_code or 202
    row.response = created.model_dump(mode="json")
    return created
