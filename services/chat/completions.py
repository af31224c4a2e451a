"""A turn as OpenAI's chat completion: one body, or chunks."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson

from services.chat.admission import started
from services.chat.answer import Piece
from services.chat.turn import Turn, Usage, merge_choices
from shared.errors import PlatformError
from shared.vllm.answers import TokenLogprob
from shared.vllm.client import gather_or_cancel

Body = dict[str, Any]


async def whole(turn: Turn) -> Body:
    """The response body of a request without `stream`."""
    await turn.think()
    choices = await gather_or_cancel(_choice(turn, k) for k in range(turn.request.n))
    return _base(turn, "chat.completion") | {"choices": choices, "usage": _usage(turn.usage)}


async def stream(turn: Turn) -> AsyncGenerator[bytes]:
    """The same, as server-sent events."""
    base = _base(turn, "chat.completion.chunk")
    if turn.request.stream_options.include_usage:
        base["usage"] = None
    first = {"role": "assistant", "content": ""}
    async with started(turn.think()) as thought:
        yield b"".join(_event(base | _chunk(k, first)) for k in range(turn.request.n))
        await thought
    calls = [0] * turn.request.n
    async with aclosing(merge_choices(turn)) as pieces:
        async for k, piece in pieces:
            events = b""
            if delta := _delta(piece, calls[k]):
                calls[k] += len(piece.calls)
                logprobs = _logprobs(turn, piece.logprobs)
                events = _event(base | _chunk(k, delta, logprobs=logprobs))
            if piece.finish_reason:
                events += _event(base | _chunk(k, {}, piece.finish_reason))
            if events:
                yield events
    end = b"data: [DONE]\n\n"
    if turn.request.stream_options.include_usage:
        end = _event(base | {"choices": [], "usage": _usage(turn.usage)}) + end
    yield end


def failed(error: PlatformError) -> bytes:
    """The event that ends a stream instead of `[DONE]`."""
    return _event(error.envelope())


async def _choice(turn: Turn, k: int) -> Body:
    pieces = [piece async for piece in turn.answer(k)]
    message: Body = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
    if calls := [call.as_openai() for piece in pieces for call in piece.calls]:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return {
        "index": k,
        "message": message,
        "finish_reason": pieces[-1].finish_reason,
        "logprobs": _logprobs(turn, [row for piece in pieces for row in piece.logprobs]),
    }


def _base(turn: Turn, kind: str) -> Body:
    model = turn.served.model
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.ref,
        "system_fingerprint": f"fp_{model.id.hex}",
    }


def _delta(piece: Piece, calls: int) -> Body:
    """Empty where a piece holds nothing to show. `calls` have been sent before."""
    delta: Body = {}
    if piece.text or piece.logprobs:
        delta["content"] = piece.text
    if piece.calls:
        delta["tool_calls"] = [
            {"index": i, **call.as_openai()} for i, call in enumerate(piece.calls, calls)
        ]
    return delta


def _chunk(
    choice: int, delta: Body, finish_reason: str | None = None, logprobs: Body | None = None
) -> Body:
    entry = {"index": choice, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"choices": [entry]}


def _logprobs(turn: Turn, rows: list[TokenLogprob]) -> Body | None:
    if not turn.request.logprobs:
        return None
    count = turn.request.top_logprobs or 0
    content = [
        _token(row.text, row.logprob)
        | {"top_logprobs": [_token(*top) for top in _likeliest(row, count)]}
        for row in rows
    ]
    return {"content": content, "refusal": None}


def _likeliest(row: TokenLogprob, count: int) -> list[tuple[str, float]]:
    """vLLM lists the token that was drawn first, however likely it was."""
    return sorted(row.top.items(), key=lambda top: -top[1])[:count]


def _token(text: str, logprob: float) -> Body:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _usage(usage: Usage) -> Body:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _event(body: Body) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
