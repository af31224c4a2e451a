"""Rate limits of a key in one process: requests in any minute, and requests at once."""

import math
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.auth.keys import Caller
from shared.errors import TooManyRequests

MINUTE = 60.0


class Limits:
    """Counts a key's requests, those refused left out; a stream is one until its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: defaultdict[uuid.UUID | None, deque[float]] = defaultdict(deque)
        """Start times of each key's requests in the last minute."""
        self._at_once: defaultdict[uuid.UUID | None, int] = defaultdict(int)

    @contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """Count a request of this caller while the block lasts. Raises `TooManyRequests`."""
        self._check_at_once(caller)
        self._check_minute(caller)
        key = caller.key_id
        if caller.requests_per_minute is not None:
            self._begun[key].append(self._clock())
        # Not those of a service on the key's behalf, which have no limits.
        counts = caller.concurrent_requests is not None
        self._at_once[key] += counts
        try:
            yield
        finally:
            self._at_once[key] -= counts

    def _check_at_once(self, caller: Caller) -> None:
        most = caller.concurrent_requests
        if most is not None and self._at_once[caller.key_id] >= most:
            raise TooManyRequests(f"this key may have {most} requests at once", retry_after=1)

    def _check_minute(self, caller: Caller) -> None:
        most = caller.requests_per_minute
        if most is None:
            return
        begun, now = self._begun[caller.key_id], self._clock()
        while begun and begun[0] <= now - MINUTE:
            begun.popleft()
        if len(begun) >= most:
            wait = math.ceil(begun[0] + MINUTE - now)
            raise TooManyRequests(f"this key may send {most} requests a minute", retry_after=wait)


LIMITS = Limits()
