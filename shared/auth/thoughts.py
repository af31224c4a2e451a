"""Permission of a request to read thoughts."""

from typing import Annotated

from fastapi import Depends

from shared.auth.keys import CALLER
from shared.db.tables import Completion, Scope
from shared.thinking.answer_filter import visible
from shared.thinking.formats import ThoughtFormat


async def _may_read() -> bool:
    caller = CALLER.get()
    return caller is not None and Scope.thoughts in caller.scopes


MayReadThoughts = Annotated[bool, Depends(_may_read)]
"""True if the caller has the scope `thoughts`; without it a route shows responses only."""


def shown(row: Completion, fmt: ThoughtFormat, thoughts: bool) -> str | None:
    """Return a completion's response; without `thoughts`, thoughts that the model wrote in it are
    removed."""
    return row.response if thoughts else visible(row.response, fmt, forced=row.forced)
