"""Whether a stage's process is to go on: it has something left to do, and its engine works."""

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from shared.db.engine import transaction
from shared.db.tables import Job
from shared.jobs.shards import holds_expired
from shared.settings import get_settings
from workers.engine.admin import EngineError
from workers.engine.engine import Engine

log = logging.getLogger(__name__)
POLL_INTERVAL_S = 30.0
CANARY_SECONDS = 120.0
"""No step is longer: on a CPU a long prompt is read in one, which may well take a minute."""
FAILURES = 2
"""In a row, and the engine hangs."""


class StageWatch:
    """Whether a stage's process has anything left to do for its job."""

    def __init__(self, job_id: uuid.UUID, worker: str) -> None:
        self._job_id = job_id
        self._worker = worker
        self._silent_since: float | None = None

    def unwanted(self) -> bool:
        """Its job has ended, or it hangs: it holds shards and has not renewed them for two
        heartbeats beyond their lease. A database that was away lets leases run out, too."""
        try:
            if ended(self._job_id):
                return True
            with transaction() as session:
                silent = holds_expired(session, self._job_id, self._worker)
        except DBAPIError:
            silent = False
        now = time.monotonic()
        self._silent_since = (self._silent_since or now) if silent else None
        patience = 2 * get_settings().heartbeat_seconds
        return self._silent_since is not None and now - self._silent_since > patience


def ended(job_id: uuid.UUID) -> bool:
    with transaction() as session:
        job = session.get(Job, job_id)
        return job is None or job.status.terminal


@contextmanager
def engine_watched(engine: Engine) -> Iterator[threading.Event]:
    """Sets the event once the engine hangs, as long as the block lasts. It looks from a thread: an
    answer may be long in coming, and a stage must be ended at once when it is cancelled."""
    hung, over = threading.Event(), threading.Event()
    look = threading.Thread(target=_look, args=(engine, hung, over), daemon=True)
    look.start()
    try:
        yield hung
    finally:
        over.set()


def _look(engine: Engine, hung: threading.Event, over: threading.Event) -> None:
    """Asks for a token only where the engine has done none since the last look: one in a batch
    with a stage's may change how these are rounded."""
    seen, failures = -1.0, 0
    while failures < FAILURES:
        if over.wait(POLL_INTERVAL_S):
            return
        try:
            if engine.tokens_done() == seen:
                engine.check(CANARY_SECONDS)
            seen, failures = engine.tokens_done(), 0
        except EngineError as error:
            failures += 1
            log.warning("the engine does not answer its canary: %s", error)
    hung.set()
