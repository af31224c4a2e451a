"""Errors in a client's input, each with its field: JSON, query or form."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from fastapi.params import Form

from shared.errors import InvalidRequest

MESSAGES = {
    "extra_forbidden": "Unknown field",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "dict_type": "Input should be an object",
}
"""By the error's type, in place of words about our classes."""


@dataclass(frozen=True)
class FieldError:
    """An error in one field, or in the whole input where `path` is empty. It quotes no value."""

    path: tuple[str, ...]
    message: str
    code: str
    is_of_type: bool
    """True if the input has the wrong type; then its values were not checked."""

    @property
    def field(self) -> str:
        return ".".join(self.path)


def field_error(errors: Sequence[Any], given: Any) -> FieldError:
    """Choose the error to report. It is the first, but for a union, whose types each fail in their
    own way: then it is the error of the type that `given` fits best."""
    first, union = _read(errors[0], given)
    if union is None:
        return first
    read = (_read(error, given)[0] for error in errors)
    found = [error for error in read if error.path[: len(union)] == union]
    nearest = max(found, key=_nearness)
    messages = dict.fromkeys(
        error.message
        for error in found
        if error.path == nearest.path and error.is_of_type == nearest.is_of_type
    )
    return replace(nearest, message=_alternatives(messages))


def _nearness(error: FieldError) -> tuple[int, bool]:
    return len(error.path), not error.is_of_type


def _read(error: Any, given: Any) -> tuple[FieldError, tuple[str, ...] | None]:
    """Read a Pydantic error, and find the path of the outermost union that contains it."""
    path, union = _path(error["loc"], given, error["type"] == "missing")
    message = MESSAGES.get(error["type"], error["msg"]).removeprefix("Value error, ")
    if error["type"].startswith("union_tag_"):  # of a union told apart by a field, such as kind
        known = error["ctx"].get("expected_tags")
        path = (*path, error["ctx"]["discriminator"].strip("'"))
        message = f"Input should be one of {known}" if known else "Field required"
    if error["type"] == "value_error" and (named := re.match(r"([a-z_][a-z_.]*): ", message)):
        # A check of a whole object has no field of its own; its message begins with one.
        path = (*path, named[1])
        message = message[named.end() :]
    code = "unknown_field" if error["type"] == "extra_forbidden" else "invalid_value"
    is_of_type = error["type"].endswith("_type")
    path = tuple(_printable(part) for part in path)
    return FieldError(path, _printable(message), code, is_of_type), union


def _path(
    loc: Iterable[Any], given: Any, is_missing: bool
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Select the parts of `loc` that are in the input; others name the types of a union."""
    parts = tuple(loc)
    if not isinstance(given, dict | list):
        return tuple(str(part) for part in parts), None
    path: tuple[str, ...] = ()
    union = None
    for at, part in enumerate(parts):
        if _holds(given, part):
            given = given[part]
        elif not (is_missing and at == len(parts) - 1):
            union = path if union is None else union
            continue
        path = (*path, str(part))
    return path, union


def _holds(given: Any, part: Any) -> bool:
    if isinstance(given, list):
        return isinstance(part, int) and part < len(given)
    return isinstance(given, dict) and part in given


def _alternatives(messages: Iterable[str]) -> str:
    first, *others = messages
    return " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])


def _printable(text: str) -> str:
    """Replace what an answer cannot hold, such as a lone surrogate in a field's name."""
    return text.encode(errors="replace").decode()


async def refuse_unknown(request: Request) -> None:
    """Dependency of a route: no field of a query or form is ignored, as with JSON.

    Raises `InvalidRequest`.
    """
    dependant = request.scope["route"].dependant
    unknown = request.query_params.keys() - _aliases(dependant, "query_params")
    if any(isinstance(field.field_info, Form) for field in dependant.body_params):
        # The form has been read by now; nothing is parsed again.
        unknown |= (await request.form()).keys() - _aliases(dependant, "body_params")
    if unknown:
        name = min(unknown)
        message = f"{name}: {MESSAGES['extra_forbidden']}"
        raise InvalidRequest(message, param=name, code="unknown_field")


def _aliases(dependant: Any, params: str) -> set[str]:
    """Names of the fields that a route and its dependencies take."""
    names = {field.alias for field in getattr(dependant, params)}
    return names.union(*(_aliases(inner, params) for inner in dependant.dependencies))
