"""Waiting for what other processes do."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 30.0


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the condition holds; fails, naming `what`, when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def at_once(_key: object, work: Callable[[], object]) -> None:
    """In place of the threads that the loop starts its work on."""
    work()
