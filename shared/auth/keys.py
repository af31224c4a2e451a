"""API keys: how one is made and kept, and who comes with it."""

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
    """Who asks, by the key of the request. Limits are None where the key has none."""

    key_id: uuid.UUID | None
    """None for the platform itself, when it asks on nobody's behalf."""
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Of the request that is being answered."""


def new_key() -> str:
    """32 random bytes behind a prefix that scanners for lost secrets can know it by."""
    return f"ftk_{secrets.token_urlsafe(32)}"


def digest(key: bytes) -> str:
    """What is kept of a key. Nobody guesses 32 random bytes, so a slow hash would add nothing."""
    return hashlib.sha256(key).hexdigest()


def service_caller(on_behalf_of: uuid.UUID | None) -> Caller:
    """Whoever has the service key: another service, or who makes the first key. Thoughts pass
    between processes by the database only."""
    return Caller(on_behalf_of, EVERY_SCOPE - {Scope.thoughts})
