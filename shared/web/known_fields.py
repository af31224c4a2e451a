"""No field of a query or of a form is ignored, as `RequestModel` has it for JSON."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.params import Form

from shared.errors import InvalidRequest
from shared.web.field_errors import MESSAGES


def checks(router: APIRouter) -> list[Any]:
    """Dependencies for its routes. OpenAI's take what they do not know: clients add some."""
    return [] if router.prefix == "/v1" else [Depends(_refuse_unknown)]


async def _refuse_unknown(request: Request) -> None:
    route = get_flat_dependant(request.scope["route"].dependant)
    unknown = _unknown(request.query_params, route.query_params)
    if any(isinstance(field.field_info, Form) for field in route.body_params):
        # It has been read by now; nothing is parsed again.
        unknown += _unknown(await request.form(), route.body_params)
    if unknown:
        message = f"{unknown[0]}: {MESSAGES['extra_forbidden']}"
        raise InvalidRequest(message, param=unknown[0], code="unknown_field")


def _unknown(given: Iterable[str], fields: Iterable[Any]) -> list[str]:
    known = {field.alias for field in fields}
    return [name for name in given if name not in known]
