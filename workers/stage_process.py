"""A stage's process, which the worker starts, watches and ends."""

import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import DBAPIError

from shared.db.engine import transaction
from shared.db.tables import Job, JobKind
from shared.jobs.shards import holds_expired
from shared.process import ending_with_us
from shared.settings import get_settings
from workers.job_spec import JobSpec

log = logging.getLogger(__name__)
STAGES = {
    JobKind.generate: "workers.generate.stage",
    JobKind.judge: "workers.judge.stage",
    JobKind.train: "workers.train.job",
    JobKind.register: "workers.models.register",
    JobKind.prune: "workers.models.prune",
}
POLL_SECONDS = 0.2
POLL_INTERVAL_S = 1.0
"""Time between two reads of a running job's row, which tells whether it was cancelled."""
GRACE_SECONDS = 5.0
"""Time from SIGTERM to SIGKILL for a stage's group."""


def run_stage(job: JobSpec, worker: str, extra: list[str], must_end: Callable[[], bool]) -> int:
    """Run a job's stage and return its exit status.

    The stage is ended when `must_end` says so, when its job has ended, and when it has let its
    leases run out. It also ends with this process: the calling thread waits for it.
    """
    command = [sys.executable, "-m", STAGES[job.kind], "--job", str(job.id), "--worker", worker]
    # By SIGKILL: a stage has nothing to put in order, and its shards are fenced by their tokens.
    child = subprocess.Popen(
        ending_with_us([*command, *extra], signal.SIGKILL), start_new_session=True
    )
    log.info("stage started", extra={"pid": child.pid})
    try:
        return _wait(child, StageWatch(job.id, worker), must_end)
    finally:
        _signal_group(child.pid, signal.SIGKILL)  # also what the stage has left behind in it


def _wait(
    child: "subprocess.Popen[bytes]", watch: "StageWatch", must_end: Callable[[], bool]
) -> int:
    end_at: float | None = None
    looked_at = time.monotonic()
    while (code := child.poll()) is None:
        now = time.monotonic()
        if end_at is None and now - looked_at > POLL_INTERVAL_S:
            looked_at = now
            if watch.unwanted():
                end_at = now + 1.0  # it may be about to leave by itself
        if end_at is None and must_end():
            end_at = now
        if end_at is not None and now >= end_at:
            _signal_group(child.pid, signal.SIGTERM)
            if now - end_at > GRACE_SECONDS:
                _signal_group(child.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return code


class StageWatch:
    """Tells whether a stage's process has anything left to do for its job."""

    def __init__(self, job_id: uuid.UUID, worker: str) -> None:
        self._job_id = job_id
        self._worker = worker
        self._silent_since: float | None = None

    def unwanted(self) -> bool:
        """Tell that the job has ended, or that the stage hangs: it has not renewed its shards for
        two heartbeats beyond their leases. A database that was away lets leases run out, too."""
        try:
            if has_ended(self._job_id):
                return True
            with transaction() as session:
                silent = holds_expired(session, self._job_id, self._worker)
        except DBAPIError:
            silent = False
        now = time.monotonic()
        self._silent_since = (self._silent_since or now) if silent else None
        patience = 2 * get_settings().heartbeat_seconds
        return self._silent_since is not None and now - self._silent_since > patience


def has_ended(job_id: uuid.UUID) -> bool:
    with transaction() as session:
        job = session.get(Job, job_id)
        return job is None or job.status.terminal


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
