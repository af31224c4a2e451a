"""The routes of API keys: make, list, revoke."""

import uuid
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import Field, field_validator
from sqlalchemy import select

from shared.auth import audit
from shared.auth.keys import KEY_PREFIX_LENGTH, digest, new_key
from shared.base import RequestModel, ResponseModel, Unix
from shared.db.tables import ApiKey, Scope
from shared.errors import NotFound
from shared.schemas.requests import Name
from shared.web.paging import Limit, Page, paginate
from shared.web.session import SessionDep

router = APIRouter(tags=["keys"])


class KeyRequest(RequestModel):
    name: Name
    """Name of the key's owner or purpose; several keys may have the same."""
    scopes: frozenset[Scope] = Field(min_length=1)
    requests_per_minute: int | None = Field(default=None, ge=1, le=100_000)
    """Maximum requests in any 60 seconds to one process; unlimited when absent."""
    concurrent_requests: int | None = Field(default=None, ge=1, le=10_000)
    """Maximum requests at once to one process; a stream counts until its end."""


class KeyRead(ResponseModel):
    id: uuid.UUID
    object: Literal["key"] = "key"
    name: str
    prefix: str
    """The first characters of the key, by which its owner knows it."""
    scopes: list[Scope]
    requests_per_minute: int | None
    concurrent_requests: int | None
    created_at: Unix
    revoked_at: Unix | None

    @field_validator("scopes", mode="before")
    @classmethod
    def _known(cls, scopes: list[str]) -> list[Scope]:
        # A later version may have written a scope that this one does not know.
        return [scope for scope in Scope if scope in scopes]


class KeyCreated(KeyRead):
    key: str
    """The key itself. It is shown only here: the platform keeps its hash alone."""


@router.post("/keys", status_code=201)
def create(request: KeyRequest, session: SessionDep, response: Response) -> KeyCreated:
    """Make a key. Its answer is the only one that shows it; a repeat makes another."""
    key = new_key()
    row = ApiKey(
        name=request.name,
        prefix=key[:KEY_PREFIX_LENGTH],
        sha256=digest(key.encode()),
        scopes=[scope.value for scope in Scope if scope in request.scopes],
        requests_per_minute=request.requests_per_minute,
        concurrent_requests=request.concurrent_requests,
    )
    session.add(row)
    session.flush()
    audit.record(session, "key.create", row.id, name=row.name, scopes=row.scopes)
    response.headers["Cache-Control"] = "no-store"
    return KeyCreated(**KeyRead.model_validate(row).model_dump(), key=key)


@router.get("/keys")
def list_keys(
    session: SessionDep, after: uuid.UUID | None = None, limit: Limit = 100
) -> Page[KeyRead]:
    """All keys, those revoked as well; what a key is, none of them says."""
    return paginate(session, select(ApiKey), ApiKey, after, limit, KeyRead.model_validate)


@router.post("/keys/{key_id}/revoke")
def revoke(key_id: uuid.UUID, session: SessionDep) -> KeyRead:
    """No process takes it any more after five seconds. What it has begun ends as it would."""
    row = session.get(ApiKey, key_id, with_for_update=True)
    if row is None:
        raise NotFound(f"no key {key_id}", param="id")
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
        audit.record(session, "key.revoke", row.id, name=row.name)
    session.flush()
    return KeyRead.model_validate(row)
