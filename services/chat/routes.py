"""OpenAI's chat completions and responses over the promoted model: final answers only."""

from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.chat import completions, serving
from services.chat.admission import EventStream, cancel_on_disconnect, with_slot
from services.chat.responses import Response as ModelResponse
from services.chat.responses_schema import ResponsesRequest, in_its_names
from services.chat.schema import ChatRequest
from services.chat.served_model import ServedModel
from services.chat.serving import CACHE
from services.chat.turn import prepare
from shared.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["chat"])
lifespan = serving.lifespan


@router.get("/models")
async def list_models() -> dict[str, Any]:
    """The served models, as `name@version` and as `name`."""
    return {"object": "list", "data": [_model(model, n) for n, model in CACHE.models.items()]}


@router.get("/models/{name}")
async def get_model(name: str) -> dict[str, Any]:
    """404 unless that model is served."""
    return _model((await CACHE.named(name)).model, name)


@router.post("/chat/completions", response_class=Response)
async def chat_completions(request: ChatRequest, http: Request) -> Response:
    """Think in private, then answer. The thought is in no field of the answer or its stream."""

    async def answer() -> Response:
        turn = await prepare(request, await CACHE.named(request.model))
        if request.stream:
            return EventStream(completions.stream(turn), completions.failed)
        return _json(await cancel_on_disconnect(http.receive, completions.whole(turn)))

    return await with_slot(answer)


@router.post("/responses", response_class=Response)
async def responses(request: ResponsesRequest, http: Request) -> Response:
    """The same as a response object, of which nothing is stored."""

    async def answer() -> Response:
        chat = request.as_chat()
        try:
            response = ModelResponse(request, await prepare(chat, await CACHE.named(chat.model)))
            if request.stream:
                return EventStream(response.stream(), response.failed)
            return _json(await cancel_on_disconnect(http.receive, response.whole()))
        except InvalidRequest as error:
            raise in_its_names(error) from None

    return await with_slot(answer)


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _model(model: ServedModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": "forethought"}
