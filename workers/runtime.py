"""Runs a job's stage as a child process, with the engine or the device it needs.

The Celery process owns one engine and imports no ML library. GPU work happens in the engine's and
the stage's processes, each in a group of its own: cancelling kills the group, and all its memory is
freed.
"""

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event

from shared import log
from shared.db.engine import retry_while_db_down_if, transaction
from shared.db.tables import Json
from shared.jobs.job import fail_job
from shared.jobs.recovery import release_shards
from shared.jobs.shards import has_work
from shared.schemas.judges import Needs
from shared.settings import get_settings
from workers.engine.admin import EngineError, EngineStartError
from workers.engine.engine import ManagedEngine
from workers.engine.watch import engine_watched
from workers.job_spec import JobSpec, load
from workers.leases import new_worker_name
from workers.stage import DATABASE_AWAY, ENGINE_FAILED, LEASE_LOST
from workers.stage_process import GRACE_SECONDS, has_ended, run_stage

logger = logging.getLogger(__name__)


class Runtime:
    """The engine, the device's lock and the running jobs of one worker process."""

    def __init__(self) -> None:
        self._engine = ManagedEngine.for_worker()
        self._device = threading.Lock()
        self._running: set[uuid.UUID] = set()
        self._guard = threading.Lock()
        self._stopping = Event()
        self._startup_failures: Counter[uuid.UUID] = Counter()
        """Times that a job's engine or stage failed before a shard was claimed."""
        self._tried_smaller: set[uuid.UUID] = set()
        """Jobs whose engine has run out of memory once."""

    def run(self, job_id: uuid.UUID) -> None:
        """Work on a job until none of its shards can be taken; a doubled message does nothing."""
        with self._guard:
            if job_id in self._running or self._stopping.is_set():
                return
            self._running.add(job_id)
        try:
            with transaction() as session:
                job = load(session, job_id)
            if job is not None:
                with log.bind(**job.bound(), kind=job.kind.value):
                    self._work(job)
        finally:
            with self._guard:
                self._running.discard(job_id)

    def _work(self, job: JobSpec) -> None:
        try:
            with self._needs(job) as extra:
                if extra is not None:
                    self._run_stage(job, extra)
        except EngineStartError as error:
            logger.error("engine: %s", error)
            if not self._may_try_smaller(job.id):  # else the sweeper sends the job again
                self._fail(job.id, "engine_failed", str(error))
        except EngineError as error:
            logger.error("engine: %s", error)
            self._record_startup_failure(job.id, "engine_failed", str(error))
        except (OSError, ValueError) as error:
            # The model's folder is gone, or its files cannot be read.
            logger.exception("cannot run the job")
            message = f"{type(error).__name__}: {error}"
            if isinstance(error, FileNotFoundError | ValueError):
                self._fail(job.id, "worker_failed", message)
            else:  # a failing disk or machine may work again
                self._record_startup_failure(job.id, "worker_failed", message)

    def _fail(self, job_id: uuid.UUID, code: str, message: str) -> None:
        self._startup_failures.pop(job_id, None)
        self._tried_smaller.discard(job_id)  # a resumed job begins anew
        if self._stopping.is_set():
            return  # the engine was ended under it; another worker takes the job
        with transaction() as session:
            fail_job(session, job_id, {"code": code, "message": message, "param": None})

    def stop(self) -> None:
        """End the stages and the engine, and give back the shards that they work on."""
        self._stopping.set()
        deadline = time.monotonic() + GRACE_SECONDS + 4
        while self._running and time.monotonic() < deadline:
            time.sleep(0.1)
        self._engine.close()

    @contextmanager
    def _needs(self, job: JobSpec) -> Iterator[list[str] | None]:
        """Hold what the stage needs; yields its extra arguments, or None when it is not to run.

        One stage at a time uses the device. A verifying judge needs none, so it runs beside
        the generation whose shards it follows; nor do registering and pruning.
        """
        if job.needs is Needs.nothing:
            yield []
            return
        with self._device:
            if self._stopping.is_set() or not _has_work(job.id):
                yield None  # the sweeper sends the job again when there is a shard to take
            elif job.needs is Needs.engine:
                assert job.weights is not None
                self._engine.ensure(job.weights)
                yield ["--engine-url", self._engine.url]
            else:
                with self._engine.asleep() if self._engine.alive() else nullcontext():
                    yield []

    def _run_stage(self, job: JobSpec, extra: list[str]) -> None:
        worker = new_worker_name()
        asks_engine = job.needs is Needs.engine
        with engine_watched(self._engine) if asks_engine else nullcontext(Event()) as hung:
            code = run_stage(
                job, worker, extra, must_end=lambda: self._stopping.is_set() or hung.is_set()
            )
        if code != 0:
            self._give_back(job.id, worker, ENGINE_FAILED if hung.is_set() else code)
        else:
            self._startup_failures.pop(job.id, None)
        if hung.is_set():
            self._engine.kill()

    def _give_back(self, job_id: uuid.UUID, worker: str, code: int) -> None:
        """Queue the shards of a stage that died again, without waiting for their leases to end.

        A stage that we have ended costs no attempt. One that dies again and again before it claims
        a shard fails its job, for attempts are counted with claims.
        """
        error = self._error(code)
        excused = (
            self._stopping.is_set()
            or code in (LEASE_LOST, DATABASE_AWAY)
            or (code == ENGINE_FAILED and self._may_try_smaller(job_id))
        )
        release = retry_while_db_down_if(lambda: not self._stopping.is_set())(_release)
        held = release(job_id, worker, error, counts=not excused)
        if held:
            logger.warning("gave back %d shards: %s", held, error["code"])
            return
        if excused or has_ended(job_id):
            return
        self._record_startup_failure(job_id, error["code"], error["message"])

    def _error(self, code: int) -> Json:
        """The error of a stage that ended with this status."""
        if code == ENGINE_FAILED:
            last = self._engine.last_lines()
            message = "the engine failed" + (f"; its last lines:\n{last}" if last else "")
            return {"code": "engine_failed", "message": message, "param": None}
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        message = f"the stage process ended by {how}; see the worker's log"
        return {"code": "stage_died", "message": message, "param": None}

    def _may_try_smaller(self, job_id: uuid.UUID) -> bool:
        """Tell whether the engine ran out of memory with this job for the first time. It then
        starts again with a smaller batch, and the shards are charged no attempt."""
        if job_id in self._tried_smaller or not self._engine.ran_out_of_memory():
            return False
        self._tried_smaller.add(job_id)
        return True

    def _record_startup_failure(self, job_id: uuid.UUID, code: str, message: str) -> None:
        """The stage failed before it claimed a shard, so no attempt was counted. Fail the job after
        `max_attempts` such failures; until then the sweeper sends it again."""
        self._startup_failures[job_id] += 1
        if self._startup_failures[job_id] >= get_settings().max_attempts:
            self._fail(job_id, code, message)


def _has_work(job_id: uuid.UUID) -> bool:
    """Tell whether a shard can be claimed now; a stage is not started only to wait for one."""
    settings = get_settings()
    with transaction() as session:
        return has_work(
            session,
            job_id,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
        )


def _release(job_id: uuid.UUID, worker: str, error: Json, *, counts: bool) -> int:
    limit = get_settings().max_attempts
    with transaction() as session:
        return release_shards(session, job_id, worker, error, max_attempts=limit, counts=counts)
