"""An OpenAI-shaped chat server that answers as a script says, also with what can go wrong."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.settings import get_settings
from tests.support.scripted_engine import serving

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """`text` word by word, each a token, or an error with this status."""

    text: str = ""
    status: int = 200
    finish: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    top: dict[str, float] | None = None
    """Log-probabilities in place of the last token."""
    code: str = "bad"
    """Of an error."""
    empty: bool = False
    """Without choices."""
    changes: dict[str, Any] | str = field(default_factory=dict)
    """Of the answer's fields, or a page in its place."""
    seconds: float = 0.0
    """That it takes."""


@dataclass
class JudgeServer:
    script: Callable[[Messages], Reply | str]
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, with the key that came with them under `key`."""

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body | {"key": request.headers.get("authorization", "")})
        reply = self.script(body["messages"])
        reply = Reply(reply) if isinstance(reply, str) else reply
        await asyncio.sleep(reply.seconds)
        if reply.status != 200:
            error = {"error": {"message": f"no: {body}", "code": reply.code, "type": "error"}}
            return JSONResponse(error, reply.status, reply.headers)
        if isinstance(reply.changes, str):
            kind = "application/json" if reply.changes.startswith("{") else "text/html"
            return Response(reply.changes, media_type=kind)
        return JSONResponse(_completion(body, reply) | reply.changes)


def _completion(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": reply.finish,
        "message": {"role": "assistant", "content": reply.text},
    }
    words = [f" {word}" if i else word for i, word in enumerate(reply.text.split(" "))]
    if body.get("logprobs"):
        tops = [{word: 0.0} for word in words[:-1]] + [reply.top or {words[-1]: 0.0}]
        choice["logprobs"] = {
            "content": [
                {"token": word, "logprob": 0.0, "bytes": None, "top_logprobs": _top(top)}
                for word, top in zip(words, tops, strict=True)
            ]
        }
    usage = {"prompt_tokens": 100, "completion_tokens": len(words), "total_tokens": 0}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
        "choices": [] if reply.empty else [choice], "usage": usage,
    }  # fmt: skip


def _top(top: dict[str, float]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": nats, "bytes": None} for token, nats in top.items()]


@contextmanager
def running(server: JudgeServer) -> Iterator[str]:
    """The server's address without /v1, as long as the block lasts. Judges may be there, with the
    key in TEST_API_KEY if it is set."""
    route = Route("/v1/chat/completions", server.chat, methods=["POST"])
    with serving(Starlette(routes=[route])) as url, pytest.MonkeyPatch.context() as patch:
        variable = "=TEST_API_KEY" if "TEST_API_KEY" in os.environ else ""
        patch.setenv("FORETHOUGHT_JUDGE_ADDRESSES", f"http://other/v1 {url}/v1{variable}")
        get_settings.cache_clear()
        yield url
    get_settings.cache_clear()
