"""Database session of a request."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from shared.db.engine import transaction


def _session() -> Iterator[Session]:
    with transaction() as session:
        yield session


SessionDep = Annotated[Session, Depends(_session, scope="function")]
"""Committed before the response is sent, so a client can read what it wrote."""
