"""`Idempotency-Key` on POSTs that create: the same body gets the same answer for a day."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from shared.db import SessionDep
from shared.errors import InvalidRequest
from shared.models import IdempotencyKey

KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Read = TypeVar("Read", bound=BaseModel)
KEPT = timedelta(hours=24)


class KeyReused(InvalidRequest):
    status = 422
    code = "idempotency_key_reused"


class Once:
    """Creates once for a request's key, in the request's own transaction."""

    def __init__(
        self, request: Request, response: Response, session: SessionDep, key: KeyHeader = None
    ) -> None:
        self._route = request.scope["route"]
        self._response = response
        self._session = session
        self._key = key

    def __call__(self, body: BaseModel, create: Callable[[], Read], read: type[Read]) -> Read:
        """Run `create`, or give a repeat the stored answer and `Idempotent-Replayed`.

        The key's row is inserted first, so a repeat that races waits for the first one's commit.
        """
        if self._key is None:
            return create()
        row, mine = self._row(hashlib.sha256(body.model_dump_json().encode()).hexdigest())
        if not mine:
            self._response.headers["Idempotent-Replayed"] = "true"
            self._response.status_code = row.status
            return read.model_validate(row.response)
        created = create()
        row.status = self._route.status_code
        row.response = created.model_dump(mode="json")
        return created

    def _row(self, digest: str) -> tuple[IdempotencyKey, bool]:
        """The key's row, and whether this request is the first to use it."""
        self._session.execute(
            delete(IdempotencyKey).where(IdempotencyKey.created_at < datetime.now(UTC) - KEPT)
        )
        values: dict[str, Any] = {
            "key": self._key,
            "route": f"POST {self._route.path}",
            "body_sha256": digest,
            "status": 0,
            "response": {},
        }
        new = insert(IdempotencyKey).values(values).on_conflict_do_nothing()
        mine = self._session.execute(new.returning(IdempotencyKey.key)).scalar() is not None
        row = self._session.get_one(IdempotencyKey, (values["key"], values["route"]))
        if row.body_sha256 != digest:
            raise KeyReused(
                "Idempotency-Key: used before with another body", param="Idempotency-Key"
            )
        return row, mine


OnceDep = Annotated[Once, Depends()]
"""For POSTs that create: `once(body, create, ReadModel)`."""
