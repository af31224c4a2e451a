"""The live keys, held in memory so that no request asks the database.

A process looks again when a request comes and its last look is old, and at once for a key it does
not know: a new key works at once, a revoked one for five seconds at most. While the database is
away, what was known goes on being known for ten minutes; nobody can revoke a key then, either.
"""

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from shared.auth.keys import Caller, digest
from shared.db.engine import AWAY_AFTER_SECONDS, failfast_engine
from shared.db.tables import ApiKey, Scope
from shared.errors import Unavailable

logger = logging.getLogger(__name__)
FRESH_SECONDS = 1.0
"""Age of the keys after which the next request starts a refresh, and does not wait for it."""
MAX_AGE_SECONDS = 5.0
"""Age of the keys after which a request waits for a refresh."""
AWAY_SECONDS = 600.0
"""Age up to which the keys are used while the database is away."""
APART_SECONDS = 0.2
"""Least seconds between two refreshes, however many unknown keys come."""
PATIENCE_SECONDS = 2.0 * AWAY_AFTER_SECONDS
"""Most seconds to wait for a refresh that Postgres neither answers nor refuses."""


class KeyCache:
    """Callers by key, refreshed from the database in the background."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}
        self._looked_at = -math.inf
        """Time at which the last successful refresh began."""
        self._failed_at = -math.inf
        # One thread: looks that are asked for at the same time become one.
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="keys")

    async def find(self, key: bytes) -> Caller | None:
        """Return the key's caller, or None for a key that is unknown or revoked.

        Raises:
            Unavailable: the database is away and the key is not in memory.
        """
        hashed, now = digest(key), time.monotonic()
        known = self._callers.get(hashed)
        if known is None:
            await self._look(now)
            return self._callers.get(hashed)
        if not self._holds(now):
            try:
                await self._look(now - FRESH_SECONDS)
            except Unavailable:
                if now - self._looked_at > AWAY_SECONDS:
                    raise
            return self._callers.get(hashed)
        if now - self._looked_at > FRESH_SECONDS:
            self._looker.submit(self._look_since, now - FRESH_SECONDS)
        return known

    def _holds(self, now: float) -> bool:
        """True if the keys are fresh enough. While refreshes fail, not every request waits."""
        age = now - self._looked_at
        failing = now - self._failed_at < MAX_AGE_SECONDS
        return age < MAX_AGE_SECONDS or (failing and age < AWAY_SECONDS)

    async def _look(self, since: float) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.wrap_future(self._looker.submit(self._look_since, since))
        except TimeoutError:
            self._failed_at = time.monotonic()
            raise _away() from None

    def _look_since(self, moment: float) -> None:
        """Refresh the keys, unless a refresh has begun since. Raises `Unavailable` if it failed."""
        if self._looked_at > moment:
            return
        if self._failed_at <= moment:
            last = max(self._looked_at, self._failed_at)
            time.sleep(max(0.0, last + APART_SECONDS - time.monotonic()))
            began = time.monotonic()
            try:
                self._callers, self._looked_at = _read(), began
                return
            except SQLAlchemyError as error:
                self._failed_at = began
                logger.warning("keys cannot be looked up: %s", type(error).__name__)
        raise _away()


def _away() -> Unavailable:
    return Unavailable(
        "the database is away, and so it is not known whose key this is",
        code="database_away",
        retry_after=2,
    )


def _read() -> dict[str, Caller]:
    """Read the callers of all live keys, by the hash of the key."""
    query = select(
        ApiKey.sha256,
        ApiKey.id,
        ApiKey.scopes,
        ApiKey.requests_per_minute,
        ApiKey.concurrent_requests,
    ).where(ApiKey.revoked_at.is_(None))
    with failfast_engine().connect() as connection:
        return {
            # A scope of a later version's opens nothing here.
            sha256: Caller(id_, frozenset(s for s in Scope if s in scopes), per_minute, at_once)
            for sha256, id_, scopes, per_minute, at_once in connection.execute(query)
        }
