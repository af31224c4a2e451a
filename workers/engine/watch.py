"""Finds out that an engine hangs while a stage uses it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from workers.engine.admin import EngineError
from workers.engine.engine import ManagedEngine

log = logging.getLogger(__name__)
POLL_INTERVAL_S = 30.0
CANARY_SECONDS = 120.0
"""No step is longer: on a CPU a long prompt is read in one, which may well take a minute."""
MAX_FAILURES = 2
"""An engine that fails so many checks in a row hangs."""


@contextmanager
def engine_watched(engine: ManagedEngine) -> Iterator[threading.Event]:
    """Yields an event that is set once the engine hangs. A thread asks the engine: its answer may
    take long, and a cancelled stage must be ended at once."""
    hung, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=_watch, args=(engine, hung, over), daemon=True)
    thread.start()
    try:
        yield hung
    finally:
        over.set()


def _watch(engine: ManagedEngine, hung: threading.Event, over: threading.Event) -> None:
    seen, failures = -1.0, 0
    while failures < MAX_FAILURES:
        if over.wait(POLL_INTERVAL_S):
            return
        try:
            # Only of an engine that did nothing meanwhile: a token in a batch with a stage's may
            # change how these are rounded.
            if engine.tokens_done() == seen:
                engine.check(CANARY_SECONDS)
            seen, failures = engine.tokens_done(), 0
        except EngineError as error:
            failures += 1
            log.warning("the engine does not answer its canary: %s", error)
    hung.set()
