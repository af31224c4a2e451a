"""A stage's process ends with its worker."""

import subprocess
import sys

import psutil

from tests.support.waiting import until

WORKER = """
import threading, uuid
from shared.db.tables import JobKind
from shared.schemas.judges import Needs
from workers import stage_process
from workers.job_spec import JobSpec

stage_process.STAGES[JobKind.prune] = "tests.support.stubborn_stage"
stage_process.POLL_INTERVAL_S = 600.0
job = JobSpec(uuid.uuid4(), JobKind.prune, None, {}, Needs.nothing, None)
args = (job, "worker", [], lambda: False)
threading.Thread(target=stage_process.run_stage, args=args).start()
"""


def test_a_stubborn_stage_dies_with_a_worker_that_is_killed() -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER])
    stages: list[psutil.Process] = []

    def started() -> bool:
        stages[:] = psutil.Process(worker.pid).children()
        return any("-IS" not in stage.cmdline() for stage in stages)

    try:
        until(started, "the stage has started")
    finally:
        worker.kill()
        worker.wait()
    _, alive = psutil.wait_procs(stages, timeout=5)
    assert not alive, f"{alive} outlived the worker"
