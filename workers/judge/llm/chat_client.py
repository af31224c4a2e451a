"""Asking a chat model: the worker's own engine, or whoever answers at an OpenAI-compatible address.

A question that cannot be answered as it is, such as one too long for the model, has an answer
without text: one response without a verdict must not end a job.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import httpx2
import openai
from pydantic import dataclasses as checked

from shared.settings import get_settings
from shared.vllm.answers import EngineFailed
from shared.vllm.client import KEEP_ALIVE_SECONDS
from workers.engine.process import MODEL_NAME
from workers.leases import StageError

ENGINE_SECONDS = 3600.0
REFUSALS = {
    "too_long": ("context_length", "context length", "too long", "string_above_max_length"),
    "filtered": ("content_filter", "content_policy", "content management policy"),
}
"""Words by which a refusal of the question's content is recognised."""
TOP = 20
"""Number of likeliest tokens asked for with an expected score: OpenAI gives no more."""


@dataclass(frozen=True, slots=True)
class Question:
    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    logprobs: bool = False


@checked.dataclass(frozen=True, slots=True)
class Token:
    text: str
    top: dict[str, float]
    """The likeliest tokens in this place, with their log-probabilities in nats."""


@checked.dataclass(frozen=True, slots=True)
class Answer:
    text: str | None
    """None where the answer has no readable text."""
    tokens: list[Token] = field(default_factory=list)
    """The tokens of the text, if log-probabilities were asked for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lacking: str = ""
    """Why there is no text: `too_long` and `filtered` were refused, `cut` ended at its limit,
    `empty` came without, and `failed` never came."""


class ChatClient(Protocol):
    """Asks one chat model; entered once for the questions of a shard."""

    price_in: float
    price_out: float
    """Dollars a million tokens."""

    async def ask(self, question: Question) -> Answer: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


MakeChatClient = Callable[[], ChatClient]


class UsageCounter:
    """Adds up the calls and tokens that judging one response, or one instruction, took."""

    def __init__(self, client: ChatClient) -> None:
        self._prices = {"prompt_tokens": client.price_in, "completion_tokens": client.price_out}
        self._counts: Counter[str] = Counter()

    def count(self, answer: Answer) -> Answer:
        """Count an answer's tokens, and return it."""
        self._counts["calls"] += 1
        if answer.lacking:
            self._counts[f"unanswered_{answer.lacking}"] += 1
        for kind in self._prices:
            self._counts[kind] += getattr(answer, kind)
        return answer

    def add(self, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)

    def counts(self) -> dict[str, float]:
        """The counts, with the price of the tokens where they cost anything."""
        dollars = sum(self._counts[kind] * price for kind, price in self._prices.items()) / 1e6
        return {**self._counts, **({"dollars": dollars} if dollars else {})}


class NoChoice(Exception):
    """An answer with status 200 holds no completion."""


class EngineChatClient:
    """The worker's engine. Raises `EngineFailed` when it fails."""

    price_in = price_out = 0.0

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        self._client = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            timeout=ENGINE_SECONDS,
            # A proxy of the environment is for the world outside.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, limits=limits),
        )
        # As many as it decodes at once: the rest need not hold a connection each.
        self._free = asyncio.Semaphore(get_settings().max_num_seqs)

    async def ask(self, question: Question) -> Answer:
        try:
            async with self._free:
                return await ask(self._client, MODEL_NAME, question)
        except openai.BadRequestError as error:
            message = f"the judge's engine refuses the request ({field_of(error)})"
            raise StageError(message, code="judge_refused", param="judge") from None
        except (openai.APIError, NoChoice) as error:
            raise EngineFailed(f"the judge's engine failed ({type(error).__name__})") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


async def ask(
    client: openai.AsyncOpenAI, model: str, question: Question, sends_sampling: bool = True
) -> Answer:
    """One request. What the question holds may be refused, and is answered by that; raises the
    library's errors, and `NoChoice`."""
    more: dict[str, Any] = {}
    if sends_sampling:
        more |= {"temperature": question.temperature, "seed": question.seed}
    if question.logprobs:
        more |= {"logprobs": True, "top_logprobs": TOP}
    try:
        completion = await client.chat.completions.create(
            model=model,
            messages=question.messages,  # type: ignore[arg-type]
            max_completion_tokens=question.max_tokens,
            **more,
        )
    except openai.APIStatusError as error:
        if (why := _refused_content(error)) is None:
            raise
        return Answer(None, lacking=why)
    except ValueError as error:  # what came is no JSON
        raise NoChoice from error
    return _read(completion)


def _read(completion: Any) -> Answer:
    """The library checks nothing of what it is sent: it may be a page of HTML, or lack any field.
    Raises `NoChoice`."""
    try:
        [choice] = completion.choices
        usage = completion.usage
        rows = (choice.logprobs and choice.logprobs.content) or []
        tops = [{top.token: top.logprob for top in row.top_logprobs or ()} for row in rows]
        answer = Answer(
            choice.message.content,
            [Token(row.token, top) for row, top in zip(rows, tops, strict=True)],
            (usage and usage.prompt_tokens) or 0,
            (usage and usage.completion_tokens) or 0,
        )
        return _without_text(answer, choice.finish_reason)
    except (AttributeError, TypeError, ValueError) as error:
        raise NoChoice from error


def _without_text(answer: Answer, finish_reason: str | None) -> Answer:
    """Drop the text of an answer that was cut off, for it may have been about to say the opposite.
    Raises `NoChoice` for an answer that the engine gave up."""
    if finish_reason == "abort":
        raise NoChoice
    why = {"length": "cut", "content_filter": "filtered"}.get(finish_reason or "")
    if why is None and not answer.text:
        why = "empty"
    return answer if why is None else replace(answer, text=None, lacking=why)


def _refused_content(error: openai.APIStatusError) -> str | None:
    """The reason why this one question is refused; None where any other would be refused too."""
    if error.status_code == 413:
        return "too_long"
    if error.status_code not in (400, 422):
        return None
    message = f"{error.code} {error.message}".lower()
    return next((why for why, words in REFUSALS.items() if any(w in message for w in words)), None)


def field_of(error: openai.APIStatusError) -> str:
    """Status, code and field, as far as they are plain names: words may quote what was asked."""
    parts = (f"{name} {value}" for name, value in (("code", error.code), ("field", error.param)))
    named = [part for part in parts if re.fullmatch(r"\w+ [\w.\[\]-]{1,60}", part)]
    return ", ".join([f"status {error.status_code}", *(n for n in named if "None" not in n)])
