"""Base classes of requests and answers.

The docstring of a field is its description at `/docs`.
"""

import math
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, HttpUrl, field_validator

MAX_DEPTH = 100


class RequestModel(BaseModel):
    """Unknown fields are errors: a misspelt setting must not be ignored for six hours."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        # Postgres would refuse it, where no field can be named any more.
        return checked(value, allows_nul=False)


class ResponseModel(BaseModel):
    """Base class of answers. `model_validate(row)` makes one from a database row's attributes."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)


def _unix(moment: Any) -> Any:
    return int(moment.timestamp()) if isinstance(moment, datetime) else moment


Unix = Annotated[int, BeforeValidator(_unix)]
"""Seconds since 1970, as OpenAI writes times; made from a `datetime`. For a column that may be NULL
write `Unix | None`."""


def checked(value: Any, *, allows_nul: bool) -> Any:
    """Return a field's value. Raises ValueError if it cannot be passed on as JSON or stored."""
    if isinstance(value, str) and value.isascii() and allows_nul:
        return value  # as chat's mostly are
    if problem := _problem(value, allows_nul, MAX_DEPTH):
        raise ValueError(problem)
    return value


def _problem(value: Any, allows_nul: bool, depth: int) -> str | None:
    """Return what is wrong with a value, if anything. Models inside it have checked themselves."""
    match value:
        case str():
            if not (value.isascii() or _is_unicode(value)):
                return "must not hold a lone surrogate"
            return "must not hold a NUL character" if "\0" in value and not allows_nul else None
        case float():
            return None if math.isfinite(value) else "must not hold an infinite number or NaN"
        case int():
            return None if -(2**63) <= value < 2**64 else "must not hold a number beyond 64 bits"
        case dict() | list():
            if depth == 0:
                return f"must not be nested deeper than {MAX_DEPTH} levels"
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            problems = (_problem(part, allows_nul, depth - 1) for part in parts)
            return next((problem for problem in problems if problem), None)
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def normalized_url(value: str) -> str:
    """Write a URL in its one normal form, without a slash at its end. Raises `ValueError`."""
    return str(HttpUrl(value)).rstrip("/")
