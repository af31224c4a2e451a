"""`python -m services.coordinator.loop`: advances iterations, re-sends what was lost, and prunes.

Any number of replicas may run: rows are taken with `FOR NO KEY UPDATE SKIP LOCKED`. It sleeps on
LISTEN and looks by itself once a second, so a notification that is lost costs a second.
"""

import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime

import psycopg
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, ProgrammingError

from services.coordinator.iterations.steps import advance, fail, orphaned_jobs, stop_jobs
from services.coordinator.job_services import Services
from services.coordinator.operations import prune
from shared import log
from shared.db.engine import DB_UNAVAILABLE, is_away, is_full, listen, transaction
from shared.db.tables import Iteration, Job, Json
from shared.errors import PlatformError
from shared.jobs import broker, recovery
from shared.settings import get_settings

logger = logging.getLogger(__name__)
MAX_FAULTS = 3
_faults: Counter[uuid.UUID] = Counter()
"""Of the platform's own, in a row: one may be a race that the next try does not meet."""
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenTelemetry's own variable; unset, there are no traces."""


def tick(services: Services, stop: threading.Event) -> None:
    """One look at everything: jobs without a message, jobs of ended iterations, iterations not
    ended, what pruned ones have left. Asked to stop, it ends after the step that it is at."""
    sweep()
    with transaction() as session:
        unfinished = session.scalars(
            select(Iteration.id)
            .where(Iteration.finished_at.is_(None))
            .order_by(Iteration.created_at, Iteration.number)
        ).all()
        ended = session.scalars(
            select(Iteration.id)
            .join(Job, Job.iteration_id == Iteration.id)
            .where(
                Iteration.finished_at.is_not(None),
                orphaned_jobs(),
            )
            .distinct()
        ).all()
    for iteration_id in (*ended, *unfinished):
        _take(services, iteration_id, stop)
    if not stop.is_set():
        prune.send(services)


def _take(services: Services, iteration_id: uuid.UUID, stop: threading.Event) -> None:
    """Do what an iteration needs, unless another loop is at it. What is wrong with one holds up no
    other."""
    with log.bind(iteration=str(iteration_id)):
        try:
            while not stop.is_set() and _step(services, iteration_id):
                pass
            _faults.pop(iteration_id, None)
        except PlatformError as error:
            _refused(iteration_id, error)
        except Exception as error:
            if is_away(error):
                raise
            if is_full(error) or isinstance(error, ProgrammingError):
                # Its disk has no room, or it has not the newest schema yet.
                logger.warning("will retry: %s", type(error).__name__)
                return
            logger.exception("cannot go on with the iteration")
            _faults[iteration_id] += 1
            if _faults[iteration_id] >= MAX_FAULTS:
                _broken(iteration_id, error)


def _step(services: Services, iteration_id: uuid.UUID) -> bool:
    """One step and its commit; True where another may follow."""
    with transaction() as session:
        iteration = session.scalar(
            select(Iteration)
            .where(Iteration.id == iteration_id)
            # No key update: services insert rows that refer to the iteration meanwhile.
            .with_for_update(skip_locked=True, key_share=True)
        )
        if iteration is None:
            return False
        more = iteration.finished_at is None and advance(session, services, iteration)
        if iteration.finished_at is not None:
            stop_jobs(session, services, iteration)
        return more


def _refused(iteration_id: uuid.UUID, error: PlatformError) -> None:
    """A service that is away is asked again; one that refuses ends the iteration."""
    if error.status >= 500:
        logger.warning("will retry: %s", error.message)
        return
    _end(iteration_id, error.envelope()["error"])


def _broken(iteration_id: uuid.UUID, error: Exception) -> None:
    """A fault of the platform's own, which other tries met as well."""
    _faults.pop(iteration_id, None)
    message = (
        f"the loop cannot go on with it ({type(error).__name__}; its log says more). What was done "
        "is kept: POST /iterations/{id}/resume once that is mended"
    )
    _end(iteration_id, {"code": "loop_failed", "message": message, "param": None})


def _end(iteration_id: uuid.UUID, error: Json) -> None:
    with transaction() as session:
        iteration = session.get(Iteration, iteration_id, with_for_update={"key_share": True})
        if iteration is not None and iteration.finished_at is None:
            fail(session, iteration, error | {"stage": iteration.stage})


def sweep() -> None:
    settings = get_settings()
    with transaction() as session:
        due = recovery.sweep(
            session,
            resend_after_seconds=settings.resend_after_seconds,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
        )
        for job in due:
            broker.send_after_commit(session, job.kind, job.id)


class Waker:
    """Waits for a notification, at most `seconds`; reconnects when Postgres was away."""

    def __init__(self) -> None:
        self._connection: psycopg.Connection | None = None

    def wait(self, seconds: float) -> None:
        try:
            if self._connection is None:
                self._connection = listen()
                return  # what came before LISTEN was missed, so look at once
            for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                pass
        except psycopg.OperationalError:
            self.close()
            time.sleep(seconds)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def trace(stop: threading.Event) -> None:
    """From a thread of its own: a collector that hangs holds no iteration up."""
    if not os.environ.get(COLLECTOR):
        return
    try:
        from services.coordinator.operations import trace_export  # noqa: PLC0415  (an extra, and slow to load)
    except ImportError:
        logger.error("%s is set, but tracing needs pip install 'forethought[otel]'", COLLECTOR)
        return
    threading.Thread(target=trace_export.keep_exporting, args=(stop,), daemon=True).start()


def main() -> None:
    log.configure("loop")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings, services = get_settings(), Services.from_settings()
    trace(stop)
    waker, retention = Waker(), prune.Retention()
    logger.info("loop started", extra={"at": datetime.now(UTC).isoformat()})
    while not stop.is_set():
        try:
            tick(services, stop)
            retention.look()
        except (DBAPIError, *DB_UNAVAILABLE) as error:
            logger.warning("database away: %s", type(error).__name__)
        waker.wait(settings.loop_poll_seconds)
    logger.info("loop stopped")


if __name__ == "__main__":
    main()
