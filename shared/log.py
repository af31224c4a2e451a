"""JSON logs on stderr, with request, iteration, job and attempt bound where they are known.

Prompts, outputs and thoughts are never logged; log ids and counts. Of an exception the log shows
the place where it was raised and its kind. A library's message may quote what the library was
given, such as a prompt or a thought, so only the messages of our own errors and of the operating
system are shown.
"""

import logging
import sys
from collections.abc import Iterator
from traceback import StackSummary, walk_tb

import stamina
import structlog
from structlog.typing import EventDict, Processor

from shared.errors import OurError
from shared.settings import get_settings

logger = logging.getLogger("forethought")

MAX_FRAMES = 100
"""The innermost frames shown; an endless recursion has a thousand."""

bind = structlog.contextvars.bound_contextvars
"""`with bind(job=…):` adds the fields to every line logged inside, libraries' lines included."""

bind_here = structlog.contextvars.bind_contextvars
"""The same for the rest of a request or a task, which has a context of its own."""


def request_id() -> str | None:
    """Return the id of the request that is being answered, if one is."""
    found: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return found


def configure(process: str) -> None:
    """Route the standard library's logging through structlog's JSON renderer."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tidy,
        structlog.processors.ExceptionRenderer(lambda exc_info: render_exception(exc_info[1])),
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
    for noisy in ("httpx2", "httpcore2", "alembic", "celery.worker.strategy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Its lines of failed tasks quote the exception; `workers.tasks` logs them.
    logging.getLogger("celery.app.trace").setLevel(logging.CRITICAL)
    # uvicorn's own handler would print exceptions whole.
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.handlers, uvicorn.propagate = [], True
    # Ours says more (duration, request id); uvicorn's would log each line twice.
    logging.getLogger("uvicorn.access").disabled = True


def _tidy(_logger: object, _method: str, entry: EventDict) -> EventDict:
    """Remove from libraries' log lines what ours should not show."""
    entry.pop("color_message", None)  # uvicorn's line once more
    if "exc_info" in entry:
        # Below the first line asyncio quotes the exception.
        entry["event"] = entry["event"].partition("\n")[0]
    return entry


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


def render_exception(error: BaseException | None) -> str:
    """Render a traceback without messages that may quote a prompt, causes first as in Python."""
    return "\n".join(_parts(error, set()))


def _parts(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    for at, one in enumerate(reversed(_chain(error, seen))):
        yield "which led to:" if at else "Traceback (most recent call last):"
        yield from _frames(one)
        yield _title(one)
        for inner in one.exceptions if isinstance(one, BaseExceptionGroup) else ():
            yield from _parts(inner, seen)


def _chain(error: BaseException | None, seen: set[int]) -> list[BaseException]:
    """List the error and its causes, except those `seen`: an error of a group that is raised again
    alone has the group as its context."""
    chain = []
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def _frames(error: BaseException) -> Iterator[str]:
    frames = walk_tb(error.__traceback__)
    for frame in StackSummary.extract(frames, limit=-MAX_FRAMES, lookup_lines=False):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'


def _title(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    match error:
        case OurError():
            return f"{name}: {error}"
        case OSError(strerror=str(word)):
            return f"{name}: {word}"
    return name
