"""Answers of a vLLM server: samples, pieces of a stream, errors.

EngineFailed(PlatformError) 502  it answered with an error
├── EngineAway              503  it cannot be reached, went away in the middle, or gave a request up
└── EngineRefused           400  it finds the request itself wrong, such as too long a prompt
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from shared.errors import PlatformError

DETAIL_BYTES = 2000


class EngineFailed(PlatformError):
    """The engine answered with an error. `field` is the one that it names of its request, and
    `detail` the end of its own words: they may hold what a model wrote, so they are in no
    message."""

    status = 502
    code = "engine_failed"

    def __init__(
        self,
        message: str,
        *,
        engine_status: int | None = None,
        field: str | None = None,
        detail: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.engine_status = engine_status
        self.field = field
        self.detail = detail


class EngineAway(EngineFailed):
    status = 503
    code = "engine_away"


class EngineRefused(EngineFailed):
    status = 400
    type = "invalid_request_error"
    code = "engine_refused"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token with its log-probability in nats, and the likeliest ones in its place."""

    text: str
    logprob: float
    top: dict[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """One sample; of a stream, the next piece of one, of which the last has a `finish_reason`.

    `token_ids` holds everything that was generated, the model's end token included.
    `stop_reason` is the stop string, or the id of a stop token other than the model's own end.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def truncated(self) -> bool:
        """Tell if a token limit cut the sample. The sample must be whole.

        Raises:
            EngineAway: the engine gave it up (`abort`), as for weights that take the place of its
                own: what was cut off anywhere is no sample.
        """
        if self.finish_reason not in ("stop", "length"):
            raise EngineAway("the engine gave a request up", retry_after=5)
        return self.finish_reason == "length"


async def pieces(content: aiohttp.StreamReader) -> AsyncIterator[Choice]:
    """Read a stream of server-sent events. Events that arrive together are one piece."""
    rest = b""
    with engine_errors():
        while received := await content.readany():
            *events, rest = (rest + received).split(b"\n\n")
            data = [e[5:].strip() for e in events if e.startswith(b"data:")]
            ended = bool(data) and data[-1] == b"[DONE]"
            if found := [_piece(d) for d in (data[:-1] if ended else data)]:
                yield found[0] if len(found) == 1 else _joined(found)
            if ended:
                return
    raise EngineAway("the engine ended a stream early", retry_after=5)


def _piece(data: bytes) -> Choice:
    event = orjson.loads(data)
    if "error" in event:
        raise error_of(500, data)
    return _choice(event["choices"][0])


def choices(answer: dict[str, Any]) -> list[Choice]:
    """The samples of a whole answer, in order of their index."""
    return [_choice(c) for c in sorted(answer["choices"], key=lambda c: int(c["index"]))]


def _choice(c: dict[str, Any]) -> Choice:
    logprobs = _logprobs(c["logprobs"]) if c.get("logprobs") else []
    return Choice(
        c["text"], c["token_ids"] or [], c["finish_reason"], c.get("stop_reason"), logprobs
    )


def _logprobs(columns: dict[str, list[Any]]) -> list[TokenLogprob]:
    rows = zip(columns["tokens"], columns["token_logprobs"], columns["top_logprobs"], strict=True)
    return [TokenLogprob(token, logprob, top or {}) for token, logprob, top in rows]


def _joined(found: list[Choice]) -> Choice:
    return Choice(
        "".join(p.text for p in found),
        [i for p in found for i in p.token_ids],
        found[-1].finish_reason,
        found[-1].stop_reason,
        [row for p in found for row in p.logprobs],
    )


class engine_errors:
    """Turns the HTTP library's errors into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, (aiohttp.ClientError, TimeoutError, OSError)):
            message = f"the engine does not answer ({type(error).__name__})"
            raise EngineAway(message, retry_after=5) from error


def error_of(status: int, content: bytes) -> EngineFailed:
    """Make the error that an answer with this status and body stands for."""
    error = _error_object(content)
    kind = EngineAway if status == 503 else EngineFailed
    # A 404 of a wrong address, or a proxy's own 400, says nothing about the request.
    if status in (400, 413, 422) and error is not None:
        kind = EngineRefused
    return kind(
        f"the engine answered with status {status}",
        engine_status=status,
        # Of the whole request, such as `response_format`.
        field=str((error or {}).get("param") or "").removeprefix("body.").partition(".")[0] or None,
        detail=content[-DETAIL_BYTES:].decode(errors="replace"),
        retry_after=5 if status == 503 else None,
    )


def _error_object(content: bytes) -> dict[str, Any] | None:
    """The error in OpenAI's form, which vLLM itself answers with."""
    with suppress(ValueError, LookupError, TypeError):
        error = orjson.loads(content)["error"]
        return error if isinstance(error, dict) else None
    return None
