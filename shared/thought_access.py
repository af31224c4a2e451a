"""Whether the request that is being answered may read thoughts."""

from typing import Annotated

from fastapi import Depends

from shared.keys import CALLER
from shared.models import Scope


async def _may_read() -> bool:
    caller = CALLER.get()
    return caller is not None and Scope.thoughts in caller.scopes


MayReadThoughts = Annotated[bool, Depends(_may_read)]
"""Without it a route shows responses only."""
