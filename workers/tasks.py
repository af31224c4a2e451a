"""The one Celery module of all workers: which queues a process takes is up to its command line.

celery -A workers.tasks worker -Q generate,judge,train -P threads -c 4
"""

import threading
import uuid
from functools import cache
from typing import Any

from celery.signals import setup_logging, worker_init, worker_shutting_down

from shared import log
from shared.jobs.broker import celery
from workers.engine import metrics as engine_metrics
from workers.runtime import Runtime

app = celery


_creating = threading.Lock()


def runtime() -> Runtime:
    """This process's one runtime; the first messages may ask for it at the same time."""
    with _creating:
        return _runtime()


@cache
def _runtime() -> Runtime:
    return Runtime()


@app.task(name="forethought.run")  # type: ignore[untyped-decorator]
def run(_: str, job_id: str) -> None:
    try:
        runtime().run(uuid.UUID(job_id))
    except Exception:
        log.logger.exception("the job's task failed", extra={"job": job_id})
        raise


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    log.configure("worker")


@worker_init.connect  # type: ignore[untyped-decorator]
def _serve_metrics(**_: Any) -> None:
    engine_metrics.serve()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    runtime().stop()
