"""JSON logs on stderr, with request, iteration, job and attempt bound where they are known.

Prompts, outputs and thoughts are never logged; log ids and counts.
"""

import logging
import sys

import stamina
import structlog

from shared.settings import get_settings

logger = logging.getLogger("forethought")

bind = structlog.contextvars.bound_contextvars
"""`with bind(job=…):` adds the fields to every line logged inside, libraries' lines included."""

bind_here = structlog.contextvars.bind_contextvars
"""The same for the rest of a request or a task, which has a context of its own."""


def configure(process: str) -> None:
    """Route the standard library's logging through structlog's JSON renderer."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        lambda _logger, _method, entry: {"process": process, **entry},
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # Its own hook shows the arguments of the call, which may be prompts and answers.
    stamina.instrumentation.set_on_retry_hooks([_log_retry])
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(get_settings().log_level)
    for noisy in ("httpx2", "httpcore2", "alembic", "celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Ours says more (duration, request id); uvicorn's would log each line twice.
    logging.getLogger("uvicorn.access").disabled = True


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    logger.warning(
        "trying again",
        extra={
            "what": details.name,
            "attempt": details.retry_num,
            "wait_seconds": round(details.wait_for, 1),
            "error": type(details.caused_by).__name__,
        },
    )
