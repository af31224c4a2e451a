"""API keys: making and hashing them, and the caller behind one."""

import hashlib
import secrets
import uuid
from contextvars import ContextVar
from dataclasses import dataclass

from shared.db.tables import Scope

KEY_PREFIX_LENGTH = 12
"""Characters of a key by which its owner knows it; the 35 behind them stay secret."""
ON_BEHALF_OF_HEADER = "X-On-Behalf-Of"
"""Header beside the service key: id of the key whose request a service is answering."""
EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """The owner of a request's key. Limits are None where the key has none."""

    key_id: uuid.UUID | None
    """None for the platform itself, when it asks on nobody's behalf."""
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Caller of the request that is being answered."""


def new_key() -> str:
    """Make a key: 32 random bytes behind a prefix that scanners for leaked secrets recognise."""
    return f"ftk_{secrets.token_urlsafe(32)}"


def digest(key: bytes) -> str:
    """Hash a key for the database. Nobody guesses 32 random bytes, so a fast hash is enough."""
    return hashlib.sha256(key).hexdigest()


def service_caller(on_behalf_of: uuid.UUID | None) -> Caller:
    """Make the caller with the service key: another service, or the user who makes the first key.
    It may not read thoughts, which pass between processes by the database only."""
    return Caller(on_behalf_of, EVERY_SCOPE - {Scope.thoughts})
