"""`Idempotency-Key` on POSTs that create: the same body gets the same answer for a day."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import ColumnElement, delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.auth.keys import CALLER
from shared.db.engine import transaction
from shared.db.tables import IdempotencyKey
from shared.errors import InvalidRequest
from shared.web.session import SessionDep

KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Body = TypeVar("Body", bound=BaseModel)
KEPT = timedelta(hours=24)


class KeyReused(InvalidRequest):
    status = 422
    code = "idempotency_key_reused"


class Once:
    """Creates something once per `Idempotency-Key`, in the request's own transaction."""

    def __init__(
        self, request: Request, response: Response, session: SessionDep, key: KeyHeader = None
    ) -> None:
        self._status: int = request.scope["route"].status_code
        self._response = response
        self._session = session
        self._key = key
        caller = CALLER.get()
        # Another caller's keys are another's names.
        self._name = f"POST {request.scope['route'].path} {caller.key_id if caller else ''}".strip()

    def __call__(self, body: BaseModel, create: Callable[[], Body], read: type[Body]) -> Body:
        """Run `create`, or give a repeat the stored answer and `Idempotent-Replayed`.

        The key's row is inserted first, so a repeat that races waits for the first one's commit.
        """
        if self._key is None:
            return create()
        mine = (IdempotencyKey.key == self._key, IdempotencyKey.route == self._name)
        forget_expired(self._session, *mine)
        values: dict[str, Any] = {
            "key": self._key,
            "route": self._name,
            "body_sha256": _digest(body),
            "status": 0,
            "response": {},
        }
        new = insert(IdempotencyKey).values(values).on_conflict_do_nothing()
        first = self._session.execute(new.returning(IdempotencyKey.key)).scalar() is not None
        row = self._session.get_one(IdempotencyKey, (self._key, self._name))
        if not first:
            return self._replay(row, body, read)
        created = create()
        row.status = self._status
        row.response = created.model_dump(mode="json")
        return created

    def answered(self, body: BaseModel, read: type[Body]) -> Body | None:
        """Look up the stored answer to a repeat, in a transaction of its own. Use it where creating
        takes too long to be done inside the call."""
        if self._key is None:
            return None
        with transaction() as session:
            row = session.get(IdempotencyKey, (self._key, self._name))
        if row is None or row.created_at < datetime.now(UTC) - KEPT:
            return None
        return self._replay(row, body, read)

    def _replay(self, row: IdempotencyKey, body: BaseModel, read: type[Body]) -> Body:
        if row.body_sha256 != _digest(body):
            raise KeyReused(
                "Idempotency-Key: used before with another body", param="Idempotency-Key"
            )
        self._response.headers["Idempotent-Replayed"] = "true"
        self._response.status_code = row.status
        return read.model_validate(row.response)


def forget_expired(session: Session, *of: ColumnElement[bool]) -> None:
    expired = IdempotencyKey.created_at < datetime.now(UTC) - KEPT
    session.execute(delete(IdempotencyKey).where(expired, *of))


def _digest(body: BaseModel) -> str:
    return hashlib.sha256(body.model_dump_json().encode()).hexdigest()


OnceDep = Annotated[Once, Depends()]
"""For POSTs that create: `once(body, create, ReadModel)`."""
