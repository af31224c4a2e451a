"""Runs a job's stage as a child process, with the engine or the device it needs.

The Celery process owns one engine and imports no ML library. GPU work happens in the engine's and
the stage's processes, each in a group of its own: cancelling kills the group, and the memory
really comes back.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Event

from shared import log
from shared.db.engine import retry_while_db_down_if, transaction
from shared.db.tables import JobKind, Json
from shared.jobs.job import fail_job
from shared.jobs.recovery import release_shards
from shared.jobs.shards import has_work
from shared.schemas.judges import Needs
from shared.settings import get_settings
from workers.engine.admin import EngineError, EngineStartError
from workers.engine.engine import Engine
from workers.job_spec import JobSpec, load
from workers.leases import new_worker_name
from workers.stage import DATABASE_AWAY, ENGINE_FAILED, LEASE_LOST
from workers.stage_watch import StageWatch, ended, engine_watched

logger = logging.getLogger(__name__)

STAGES = {
    JobKind.generate: "workers.generate.stage",
    JobKind.judge: "workers.judge.stage",
    JobKind.train: "workers.train.job",
    JobKind.register: "workers.models.register",
    JobKind.prune: "workers.models.prune",
}
POLL_SECONDS = 0.2
POLL_INTERVAL_S = 1.0
"""How often a running job's row is asked whether it was cancelled."""
GRACE_SECONDS = 5.0
"""From SIGTERM to SIGKILL of a stage's group."""


class Runtime:
    """What one worker process holds: an engine, the device's lock, the jobs it runs."""

    def __init__(self) -> None:
        self._engine = Engine.for_worker()
        self._device = threading.Lock()
        self._running: set[uuid.UUID] = set()
        self._guard = threading.Lock()
        self._stopping = Event()
        self._startup_failures: Counter[uuid.UUID] = Counter()
        """Times that a job's engine or stage failed before a shard was claimed."""
        self._tried_smaller: set[uuid.UUID] = set()
        """Jobs whose engine has once run out of memory."""

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
        """End stages and the engine; shards in work are given back."""
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
        name = new_worker_name()
        command = [sys.executable, "-m", STAGES[job.kind], "--job", str(job.id), "--worker", name]
        child = subprocess.Popen(command + extra, start_new_session=True)
        logger.info("stage started", extra={"pid": child.pid})
        asks_engine = job.needs is Needs.engine
        with engine_watched(self._engine) if asks_engine else nullcontext(Event()) as hung:
            try:
                code = self._wait(child, job.id, name, hung)
            finally:
                _kill_group(child.pid)
        if code != 0:
            self._give_back(job.id, name, ENGINE_FAILED if hung.is_set() else code)
        else:
            self._startup_failures.pop(job.id, None)
        if hung.is_set():
            self._engine.kill()

    def _wait(
        self, child: "subprocess.Popen[bytes]", job_id: uuid.UUID, name: str, hung: Event
    ) -> int:
        """The child's exit code; ends it when its job has ended, when it has let its leases run
        out, when its engine has hung, or when the worker stops."""
        asked_at: float | None = None
        looked_at = time.monotonic()
        watch = StageWatch(job_id, name)
        while (code := child.poll()) is None:
            now = time.monotonic()
            if asked_at is None and now - looked_at > POLL_INTERVAL_S:
                looked_at = now
                if watch.unwanted():
                    asked_at = now + 1.0  # it may be about to leave by itself
            if asked_at is None and (self._stopping.is_set() or hung.is_set()):
                asked_at = now
            if asked_at is not None and now >= asked_at:
                _signal_group(child.pid, signal.SIGTERM)
                if now - asked_at > GRACE_SECONDS:
                    _signal_group(child.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        return code

    def _give_back(self, job_id: uuid.UUID, worker: str, code: int) -> None:
        """Shards of a child that died: another attempt, without waiting for the lease to end.

        One that we have ended costs no attempt. One that dies again and again before it takes a
        shard, which is where attempts are counted, ends its job.
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
        if excused or ended(job_id):
            return
        self._record_startup_failure(job_id, error["code"], error["message"])

    def _error(self, code: int) -> Json:
        """Of a stage that ended with this status."""
        if code == ENGINE_FAILED:
            last = self._engine.last_lines()
            message = "the engine failed" + (f"; its last lines:\n{last}" if last else "")
            return {"code": "engine_failed", "message": message, "param": None}
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        message = f"the stage process ended by {how}; see the worker's log"
        return {"code": "stage_died", "message": message, "param": None}

    def _may_try_smaller(self, job_id: uuid.UUID) -> bool:
        """Once a job, an engine that ran out of memory costs its shards no attempt: it starts again
        with a smaller batch."""
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
    """Whether a shard can be taken now. A stage that waits for shards comes when one is there."""
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


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _kill_group(pid: int) -> None:
    """What a stage may have left behind in its group goes with it."""
    _signal_group(pid, signal.SIGKILL)
