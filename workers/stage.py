"""What every stage's command line has in common."""

import argparse
import logging
import signal
import sys
import uuid
from collections.abc import Callable
from typing import NoReturn

from shared import jobs, log
from shared.db import transaction
from workers.leases import StageError, new_worker_name

logger = logging.getLogger(__name__)
LEASE_LOST = 75
"""Exit status of a stage that left because its work is another's now."""


def arguments(doc: str | None, *extra: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=uuid.UUID, required=True)
    parser.add_argument("--worker", default=new_worker_name())
    for name in extra:
        parser.add_argument(name, required=True)
    return parser.parse_args()


def start(args: argparse.Namespace, run: Callable[[], None]) -> None:
    """Run a stage. A `StageError` outside of any shard ends the job; a crash is for the runtime."""

    def leave(*_: object) -> NoReturn:
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    log.configure("stage")
    with transaction() as session:
        job = jobs.get(session, args.job)
        iteration = str(job.iteration_id) if job.iteration_id else None
    with log.bind(job=str(args.job), iteration=iteration, worker=args.worker):
        try:
            run()
        except StageError as error:
            logger.error("stage failed: %s", error)
            with transaction() as session:
                jobs.fail_job(session, args.job, error.error)
