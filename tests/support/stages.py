"""Runs a stage in the test's own process, as the worker's child would."""

import uuid
from collections.abc import Callable

from shared.db.engine import transaction
from workers.job_spec import load


def run_stage(main: Callable[..., None], job_id: uuid.UUID, *args: str) -> None:
    """A job that has ended is left alone."""
    with transaction() as session:
        job = load(session, job_id)
    if job is not None:
        main(job, "worker", *args)
