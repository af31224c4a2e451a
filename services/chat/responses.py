"""A turn as OpenAI's response object, or as its events. Nothing is stored."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.chat.admission import started
from services.chat.responses_schema import ResponsesRequest, in_its_names
from services.chat.turn import Turn, Usage, merge_choices
from shared.errors import InvalidRequest, PlatformError

Body = dict[str, Any]


@dataclass
class Response:
    """One response as it is made."""

    request: ResponsesRequest
    turn: Turn
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    item_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    sent: int = 0

    async def whole(self) -> Body:
        """The response body of a request without `stream`."""
        await self.turn.think()
        pieces = [piece async for piece in self.turn.answer(0)]
        return self._ended("".join(p.text for p in pieces), pieces[-1].finish_reason)

    async def stream(self) -> AsyncGenerator[bytes]:
        """The same, as server-sent events."""
        body = self._body("in_progress")
        async with started(self.turn.think()) as thought:
            yield self._event("response.created", response=body)
            yield self._event("response.in_progress", response=body)
            await thought
        yield self._event("response.output_item.added", output_index=0, item=self._item(None))
        yield self._part("response.content_part.added", part=_part(""))
        text, reason = "", None
        async with aclosing(merge_choices(self.turn)) as pieces:
            async for _, piece in pieces:
                if piece.text:
                    text += piece.text
                    yield self._part("response.output_text.delta", delta=piece.text, logprobs=[])
                reason = piece.finish_reason
        ended = self._ended(text, reason)
        yield self._part("response.output_text.done", text=text, logprobs=[])
        yield self._part("response.content_part.done", part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=ended["output"][0])
        yield self._event(f"response.{ended['status']}", response=ended)

    def failed(self, error: PlatformError) -> bytes:
        """The event that ends a stream which cannot go on."""
        if isinstance(error, InvalidRequest):
            error = in_its_names(error)
        body = self._body("failed", error={"code": error.code, "message": error.message})
        return self._event("response.failed", response=body)

    def _ended(self, text: str, finish_reason: str | None) -> Body:
        cut = finish_reason == "length"
        return self._body(
            "incomplete" if cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=[self._item(text, "incomplete" if cut else "completed")],
            usage=_usage(self.turn.usage),
        )

    def _body(self, status: str, **fields: Any) -> Body:
        request = self.request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata,
            "model": self.turn.served.model.ref,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": request.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": request.tool_choice,
            "tools": [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
        } | fields

    def _item(self, text: str | None, status: str = "in_progress") -> Body:
        content = [] if text is None else [_part(text)]
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self.item_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self.sent, **fields}
        self.sent += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"


def _part(text: str) -> Body:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> Body:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
