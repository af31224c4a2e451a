"""`python -m services.coordinator.loop`: advances iterations, re-sends lost jobs, and prunes.

Any number of replicas may run: each step is decided and recorded under a lock, and may be repeated.
The loop sleeps on LISTEN and looks by itself once a second, so a lost notification costs a second.
"""

import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import psycopg
from sqlalchemy import Select, and_, or_, select
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import aliased

from services.coordinator.iterations import transitions
from services.coordinator.iterations.state import own_step
from services.coordinator.iterations.steps import advance
from services.coordinator.job_services import Services
from services.coordinator.operations import prune
from shared import log
from shared.db.engine import DB_UNAVAILABLE, is_away, is_conflict, is_full, listen, transaction
from shared.db.tables import UNFINISHED, Iteration, Job, Json, Status
from shared.errors import PlatformError
from shared.jobs import broker, recovery
from shared.settings import get_settings

logger = logging.getLogger(__name__)
MAX_FAULTS = 3
MAX_AT_ONCE = 4
"""Iterations advanced at once, so that a slow one, or a service that hangs, holds up no other."""
MIN_PAUSE_S = 0.1
"""Notifications come in bursts, one for each shard; all in this time make one tick."""
_faults: Counter[uuid.UUID] = Counter()
"""Faults of the platform's own in a row, by iteration. The first may be a race that the next try
does not meet."""
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenTelemetry's own variable. If it is unset there are no traces."""


Start = Callable[[object, Callable[[], object]], None]
"""Starts work under a key, unless the last work under that key has not ended yet."""


def tick(services: Services, stop: threading.Event, start: Start) -> None:
    """Sweep the jobs, then start what there is to do: advance iterations, delete pruned ones."""
    sweep()
    with transaction() as session:
        ids = session.scalars(actionable()).all()
    for iteration_id in ids:
        start(iteration_id, partial(take, services, iteration_id, stop))
    start("prune", partial(prune.send, services))


def actionable() -> Select[uuid.UUID]:
    """Iterations with something to do: those that run, the next one of each run, and those that
    ended and have jobs which did not."""
    previous = aliased(Iteration)
    waits = select(previous.id).where(
        previous.run_id == Iteration.run_id,
        previous.number == Iteration.number - 1,
        previous.finished_at.is_(None),
    )
    orphaned = select(Job.id).where(
        Job.iteration_id == Iteration.id, own_step(), Job.status.in_(UNFINISHED)
    )
    unfinished = Iteration.finished_at.is_(None)
    can_go_on = or_(Iteration.status == Status.running, ~waits.exists())
    return (
        select(Iteration.id)
        .where(or_(and_(unfinished, can_go_on), and_(~unfinished, orphaned.exists())))
        .order_by(unfinished, Iteration.created_at, Iteration.number)
    )


def take(services: Services, iteration_id: uuid.UUID, stop: threading.Event) -> None:
    """Advance an iteration as far as it goes. Once `stop` is set, end after the present step."""
    with log.bind(iteration=str(iteration_id)):
        try:
            while not stop.is_set() and advance(services, iteration_id):
                pass
            _faults.pop(iteration_id, None)
        except PlatformError as error:
            if error.status >= 500:  # a service that is away is asked again
                logger.warning("will retry: %s", error.message)
            else:
                _end(iteration_id, error.envelope()["error"])
        except Exception as error:
            if is_away(error):
                raise
            if is_full(error) or is_conflict(error) or isinstance(error, ProgrammingError):
                # A full disk, a deadlock, or a schema that is not the newest yet.
                logger.warning("will retry: %s", type(error).__name__)
                return
            logger.exception("cannot go on with the iteration")
            _count_fault(iteration_id, error)


def _count_fault(iteration_id: uuid.UUID, error: Exception) -> None:
    """End the iteration once enough tries in a row have met a fault of the platform's own."""
    _faults[iteration_id] += 1
    if _faults[iteration_id] < MAX_FAULTS:
        return
    _faults.pop(iteration_id)
    message = (
        f"the loop cannot go on with it ({type(error).__name__}; its log says more). What was done "
        "is kept: POST /iterations/{id}/resume once that is mended"
    )
    _end(iteration_id, {"code": "loop_failed", "message": message, "param": None})


def _end(iteration_id: uuid.UUID, error: Json) -> None:
    with transaction() as session:
        iteration = transitions.lock(session, iteration_id)
        if iteration is not None and iteration.finished_at is None:
            transitions.fail(session, iteration, error | {"stage": iteration.stage})


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
        time.sleep(MIN_PAUSE_S)
        try:
            if self._connection is None:
                self._connection = listen()
                return  # earlier notifications were missed, so look at once
            for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                pass
        except psycopg.OperationalError:
            self.close()
            time.sleep(seconds)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Crew:
    """A few threads, on which no work is started twice under one key."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="loop")
        self._started: dict[object, Future[None]] = {}

    def start(self, key: object, work: Callable[[], object]) -> None:
        self._started = {k: f for k, f in self._started.items() if not f.done()}
        if key not in self._started:
            self._started[key] = self._pool.submit(_logged, work)

    def end(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)


def _logged(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:
        if is_away(error):
            logger.warning("database away: %s", type(error).__name__)
        else:
            logger.exception("will retry")


def trace(stop: threading.Event) -> None:
    """Export traces from a thread of its own: a collector that hangs holds up no iteration."""
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
    waker, retention, crew = Waker(), prune.Retention(), Crew()
    logger.info("loop started", extra={"at": datetime.now(UTC).isoformat()})
    while not stop.is_set():
        try:
            tick(services, stop, crew.start)
            retention.look()
        except (DBAPIError, *DB_UNAVAILABLE) as error:
            if is_away(error):
                logger.warning("database away: %s", type(error).__name__)
            else:
                logger.exception("the look at everything failed; will retry")
        waker.wait(settings.loop_poll_seconds)
    crew.end()
    logger.info("loop stopped")


if __name__ == "__main__":
    main()
