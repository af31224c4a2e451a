"""A chat turn: think in private, then answer. A client only ever sees what the second phase made.

`Turn.think` runs phase 1 for all choices; `Turn.answer` streams one choice's phase 2. Streamed or
not, an answer takes this one way, so both are the same text with the same usage.
"""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from services.coordinator.answer_filter import AnswerFilter
from services.coordinator.chat_schema import EFFORT_SHARE, ChatRequest
from services.coordinator.serving import CACHE, Served
from shared.engine_client import EngineAway, EngineError
from shared.errors import InvalidRequest, PlatformError, Unavailable
from shared.generation import SEEDS, Thought, respond_seed, think


@dataclass
class Usage:
    """Counts of token ids, summed over the choices."""

    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0

    def as_openai(self) -> dict[str, object]:
        completion = self.reasoning_tokens + self.answer_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(frozen=True)
class Piece:
    """Text to show next; the last piece of a choice has a `finish_reason`."""

    text: str
    finish_reason: str | None = None


@dataclass
class Turn:
    """One request, rendered for the model that answers it."""

    request: ChatRequest
    served: Served
    prompt_ids: list[int]
    room: int
    """Tokens between the prompt's end and that of the model's context."""
    seed: int
    thoughts: list[Thought] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    async def think(self) -> None:
        """Phase 1, of all choices at once."""
        model, fmt = self.served.model, self.served.model.format
        if not fmt.thinks:
            self.thoughts = [Thought([], "", 0, forced=False)] * self.request.n
            return
        try:
            self.thoughts = await think(
                self.served.engine,
                self.prompt_ids,
                fmt,
                n=self.request.n,
                max_tokens=thought_budget(self.request, model.thought_tokens, self.room),
                temperature=self.request.temperature,
                top_p=self.request.top_p,
                seed=self.seed,
            )
        except EngineError as error:
            raise _without_detail(error) from None
        self.usage.reasoning_tokens = sum(thought.tokens for thought in self.thoughts)

    async def answer(self, choice: int) -> AsyncIterator[Piece]:
        """Phase 2 of one choice, behind its thought."""
        thought, request = self.thoughts[choice], self.request
        budget = self._answer_budget(thought)
        if budget <= 0:
            yield Piece("", "length")
            return
        # A phase that began on one model is not continued on another.
        CACHE.still(self.served)
        fmt = self.served.model.format
        shown = AnswerFilter(fmt.thought_marker, fmt.response_marker)
        try:
            async with self.served.engine.stream(
                [*self.prompt_ids, *thought.ids],
                max_tokens=budget,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=respond_seed(self.seed + choice) if fmt.thinks else self.seed + choice,
                min_tokens=1,
                stop=request.stops,
                frequency_penalty=request.frequency_penalty,
                presence_penalty=request.presence_penalty,
            ) as deltas:
                async for delta in deltas:
                    self.usage.answer_tokens += len(delta.token_ids)
                    text = shown.feed(delta.text)
                    if delta.finish_reason:
                        yield Piece(text + shown.end(), _finish_reason(delta.finish_reason))
                        return
                    if text:
                        yield Piece(text)
        except EngineError as error:
            raise _without_detail(error) from None

    def _answer_budget(self, thought: Thought) -> int:
        room = self.room - len(thought.ids)
        limit = self.request.limit
        return room if limit is None else min(room, limit - thought.tokens)


async def prepare(request: ChatRequest, served: Served) -> Turn:
    """Render the prompt: the thought prompt goes around the newest question only, and earlier
    answers stand there without the thoughts that led to them."""
    *earlier, question = request.messages
    content = served.model.format.prompt(question.content)
    messages = [*(m.as_system() for m in earlier), {"role": "user", "content": content}]
    try:
        prompt_ids = await served.engine.render(messages)
        longest = await served.engine.max_model_len()
    except EngineError as error:
        raise _without_detail(error) from None
    if len(prompt_ids) >= longest:
        raise InvalidRequest(
            f"messages: {len(prompt_ids)} tokens with the thought prompt, and the model's context "
            f"is {longest} tokens",
            param="messages",
            code="context_length_exceeded",
        )
    # One and the same engine request repeats a whole choice; the engine adds k for choice k.
    seed = random.randrange(SEEDS) if request.seed is None else request.seed % SEEDS
    return Turn(
        request=request,
        served=served,
        prompt_ids=prompt_ids,
        room=longest - len(prompt_ids),
        seed=seed,
        usage=Usage(prompt_tokens=len(prompt_ids)),
    )


def thought_budget(request: ChatRequest, trained: int, room: int) -> int:
    """Most tokens of a thought. Half of what there is stays for the answer."""
    share = EFFORT_SHARE[request.reasoning_effort or "medium"]
    limit = room if request.limit is None else min(room, request.limit)
    return min(round(trained * share), limit - limit // 2)


def _finish_reason(engines: str) -> str:
    return "length" if engines == "length" else "stop"


def _without_detail(error: EngineError) -> PlatformError:
    """The engine's own words may hold what a model wrote."""
    if isinstance(error, EngineAway):
        return Unavailable("the model is not ready; retry shortly", retry_after=5)
    return PlatformError("the model failed to answer", code="engine_failed")
