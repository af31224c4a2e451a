"""Who may read thoughts. Without this key every route shows responses only."""

import hmac
from typing import Annotated

from fastapi import Depends, Header

from shared.settings import get_settings


def _may_read(authorization: Annotated[str | None, Header()] = None) -> bool:
    key = get_settings().thoughts_key
    given = (authorization or "").removeprefix("Bearer ")
    return bool(key) and hmac.compare_digest(given.encode(), key.encode())


MayReadThoughts = Annotated[bool, Depends(_may_read)]
