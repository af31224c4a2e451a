"""Whether the request that is being answered may read thoughts."""

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
"""Without it a route shows responses only."""


def shown(row: Completion, fmt: ThoughtFormat, thoughts: bool) -> str | None:
    """A completion's response; without `thoughts`, less those that the model wrote in it."""
    return row.response if thoughts else visible(row.response, fmt, forced=row.forced)
