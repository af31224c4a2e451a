"""The command line and the exit statuses that all stages share."""

import argparse
import logging
import signal
import sys
import uuid
from collections.abc import Callable
from typing import NoReturn

from shared import log
from shared.db.engine import is_away, is_full, retry_while_db_down, transaction
from shared.jobs.job import fail_job
from shared.jobs.shards import LeaseLost
from shared.settings import get_settings
from shared.vllm.answers import EngineFailed
from workers.job_spec import JobSpec, load
from workers.leases import StageError, new_worker_name
from workers.resource_errors import DISK_FULL, disk_full_message, exit_status

logger = logging.getLogger(__name__)
LEASE_LOST = 75
"""Exit status of a stage that left because its work is another's now."""
ENGINE_FAILED = 70
"""Exit status of a stage whose engine failed it; its worker looks after the engine."""
DATABASE_AWAY = 69
"""Exit status of a stage that could not go on without the database; it costs no attempt."""


def arguments(doc: str | None, *required: str, **optional: str) -> argparse.Namespace:
    """`--job` and `--worker`, and what else a stage takes."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=uuid.UUID, required=True)
    parser.add_argument("--worker", default=new_worker_name())
    for name in required:
        parser.add_argument(name, required=True)
    for name, default in optional.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default)
    return parser.parse_args()


def start(args: argparse.Namespace, run: Callable[[JobSpec], None]) -> None:
    """Run a stage on its job, unless that has ended. A `StageError` outside of any shard fails the
    job; the runtime looks after a crash."""

    def leave(*_: object) -> NoReturn:
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    log.configure("stage")
    job = _load(args.job)
    if job is None:
        return
    with log.bind(**job.bound(), worker=args.worker):
        try:
            run(job)
        except StageError as error:
            _fail(args.job, error)
        except EngineFailed as error:
            logger.warning("left, for the engine failed: %s", error.message)
            sys.exit(ENGINE_FAILED)
        except LeaseLost:
            logger.warning("left, for the work is another's now")
            sys.exit(LEASE_LOST)
        except Exception as error:
            if is_away(error):
                logger.warning("left, for the database was away: %s", type(error).__name__)
                sys.exit(DATABASE_AWAY)
            if exit_status(error) != DISK_FULL:
                logger.exception("the stage failed")  # Python would print the message, too
                sys.exit(1)
            message = (
                "the database's disk is full; free some space and resume"
                if is_full(error)
                else disk_full_message(get_settings().model_store)
            )
            _fail(args.job, StageError(message, code="disk_full"))


@retry_while_db_down
def _load(job_id: uuid.UUID) -> JobSpec | None:
    with transaction() as session:
        return load(session, job_id)


@retry_while_db_down
def _fail(job_id: uuid.UUID, error: StageError) -> None:
    logger.error("stage failed: %s", error)
    with transaction() as session:
        fail_job(session, job_id, error.error)
