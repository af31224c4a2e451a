"""An exception as a log may show it: where it was raised, and of which kind.

A library's message may quote what the library was given, such as a prompt or a thought. Shown is
that of our own errors, and the system's word for what it refused.
"""

from collections.abc import Iterator
from traceback import StackSummary, walk_tb

from shared.errors import OurError

FRAMES = 100
"""The innermost ones; of an endless recursion there are a thousand."""


def render(error: BaseException | None) -> str:
    """What led to it comes first, as Python prints it."""
    return "\n".join(_parts(error, set()))


def _parts(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    for at, one in enumerate(reversed(_chain(error, seen))):
        yield "which led to:" if at else "Traceback (most recent call last):"
        yield from _frames(one)
        yield _title(one)
        for inner in one.exceptions if isinstance(one, BaseExceptionGroup) else ():
            yield from _parts(inner, seen)


def _chain(error: BaseException | None, seen: set[int]) -> list[BaseException]:
    """The error and what led to it, but what was `seen`: one of a group that is raised by itself
    has the group as its context."""
    chain = []
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def _frames(error: BaseException) -> Iterator[str]:
    frames = walk_tb(error.__traceback__)
    for frame in StackSummary.extract(frames, limit=-FRAMES, lookup_lines=False):
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
