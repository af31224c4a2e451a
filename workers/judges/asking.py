"""Asking a chat model: the worker's own engine, or whoever answers at an OpenAI-compatible address.

A question that cannot be answered as it is, such as one too long for the model, has an answer
without text: one response without a verdict must not end a job.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import httpx2
import openai

from shared.engine_answers import EngineError
from shared.engine_client import KEEP_ALIVE_SECONDS
from shared.settings import get_settings
from workers.engine_admin import MODEL_NAME
from workers.leases import StageError

ENGINE_SECONDS = 3600.0
REFUSALS = {
    "too_long": ("context_length", "context length", "too long", "string_above_max_length"),
    "filtered": ("content_filter", "content_policy", "content management policy"),
}
"""Words of a refusal that is about the question's content."""
TOP = 20
"""Likeliest tokens looked at for an expected score: the most that OpenAI gives."""


@dataclass(frozen=True, slots=True)
class Question:
    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    top: dict[str, float]
    """The likeliest in its place, with their log-probabilities in nats."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str | None
    """None where there is none to read: refused, cut at its limit, or empty."""
    tokens: list[Token] = field(default_factory=list)
    """Where log-probabilities were asked for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: str = ""
    """The other side's code for why it does not answer."""


class Asker(Protocol):
    """Entered once for the questions of a shard."""

    price_in: float
    price_out: float
    """Dollars a million tokens."""

    async def ask(self, question: Question) -> Answer: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


AskWith = Callable[[], Asker]


class Tally:
    """Adds up what one response, or one instruction's, took."""

    def __init__(self, asker: Asker) -> None:
        self._prices = {"prompt_tokens": asker.price_in, "completion_tokens": asker.price_out}
        self._counts: Counter[str] = Counter()

    def of(self, answer: Answer) -> Answer:
        """The same answer, counted."""
        self._counts["calls"] += 1
        if answer.refused:
            self._counts[f"refused_{answer.refused}"] += 1
        for kind in self._prices:
            self._counts[kind] += getattr(answer, kind)
        return answer

    def add(self, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)

    def counts(self) -> dict[str, float]:
        """With what the tokens cost, where they cost anything."""
        dollars = sum(self._counts[kind] * price for kind, price in self._prices.items()) / 1e6
        return {**self._counts, **({"dollars": dollars} if dollars else {})}


class NoChoice(Exception):
    """What came with status 200 holds no completion."""


class EngineAsker:
    """The worker's engine. Raises `EngineError` when it fails."""

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
            raise EngineError(f"the judge's engine failed ({type(error).__name__})") from error

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
        return Answer(None, refused=why)
    # The library checks nothing of what it is sent: it may be a page of HTML, or lack any field.
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1 or choices[0].message is None:
        raise NoChoice
    choice, usage = choices[0], completion.usage
    rows = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    return Answer(
        # What was cut off may have been about to say the opposite.
        choice.message.content if choice.finish_reason == "stop" else None,
        [Token(row.token, {t.token: t.logprob for t in row.top_logprobs or ()}) for row in rows],
        (usage and usage.prompt_tokens) or 0,
        (usage and usage.completion_tokens) or 0,
    )


def _refused_content(error: openai.APIStatusError) -> str | None:
    """Why this one question is not answered; None where the same would happen to any other."""
    if error.status_code == 413:
        return "too_long"
    if error.status_code not in (400, 422):
        return None
    said = f"{error.code} {error.message}".lower()
    return next((why for why, words in REFUSALS.items() if any(w in said for w in words)), None)


def field_of(error: openai.APIStatusError) -> str:
    """Status, code and field, as far as they are plain names: words may quote what was asked."""
    parts = (f"{name} {value}" for name, value in (("code", error.code), ("field", error.param)))
    named = [part for part in parts if re.fullmatch(r"\w+ [\w.\[\]-]{1,60}", part)]
    return ", ".join([f"status {error.status_code}", *(n for n in named if "None" not in n)])
