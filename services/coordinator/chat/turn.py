"""A chat turn: think in private, then answer. A client only ever sees what the second phase made.

`Turn.think` runs phase 1 for all choices; `Turn.answer` runs one choice's phase 2. Streamed or not,
an answer is read in one way, so both are the same text with the same usage.
"""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from services.coordinator.chat.answer import AnswerReader, Piece
from services.coordinator.chat.answer_filter import AnswerFilter
from services.coordinator.chat.schema import ChatRequest
from services.coordinator.chat.serving import CACHE, Served
from services.coordinator.chat.tool_calls import ToolCallReader, grammar
from shared.engine_answers import Choice, EngineAway, EngineError, EngineRefused
from shared.errors import InvalidRequest, PlatformError, Unavailable
from shared.generation import SEEDS, Thought, respond_seed, think


@dataclass
class Usage:
    """Counts of token ids, summed over the choices."""

    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        return self.reasoning_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


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
        fmt = self.served.model.format
        if not fmt.thinks:
            self.thoughts = [Thought([], "", 0, forced=False)] * self.request.n
            return
        try:
            self.thoughts = await think(
                self.served.engine,
                self.prompt_ids,
                fmt,
                n=self.request.n,
                max_tokens=self._thought_budget(),
                temperature=self.request.temperature,
                top_p=self.request.top_p,
                seed=self.seed,
            )
        except EngineError as error:
            raise _without_detail(error) from None
        self.usage.reasoning_tokens = sum(thought.tokens for thought in self.thoughts)

    async def answer(self, choice: int) -> AsyncIterator[Piece]:
        """Phase 2 of one choice, behind its thought."""
        thought = self.thoughts[choice]
        budget = self._answer_budget(thought)
        if budget <= 0:
            yield Piece(finish_reason="length")
            return
        # A phase that began on one model is not continued on another.
        CACHE.still(self.served)
        reader = self._reader()
        try:
            async for piece in self._second_phase(choice, thought, budget):
                self.usage.answer_tokens += len(piece.token_ids)
                yield reader.read(piece)
        except EngineRefused as error:
            raise self._named(error) from None
        except EngineError as error:
            raise _without_detail(error) from None

    async def _second_phase(
        self, choice: int, thought: Thought, budget: int
    ) -> AsyncIterator[Choice]:
        request, engine = self.request, self.served.engine
        prompt = [*self.prompt_ids, *thought.ids]
        seed = self.seed + choice
        sampling: dict[str, Any] = {
            "max_tokens": budget,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": respond_seed(seed) if self.served.model.format.thinks else seed,
            "min_tokens": 1,
            "stop": request.stops,
            "include_stop_str_in_output": False,
            "frequency_penalty": request.frequency_penalty,
            "presence_penalty": request.presence_penalty,
            **self._constraints(),
        }
        if not request.stream:
            [whole] = await engine.complete(prompt, **sampling)
            yield whole
            return
        async with engine.stream(prompt, **sampling) as pieces:
            async for piece in pieces:
                yield piece

    def _constraints(self) -> dict[str, Any]:
        request = self.request
        fields: dict[str, Any] = {}
        if request.logprobs:
            fields["logprobs"] = request.top_logprobs or 0
        if request.logit_bias:
            fields["logit_bias"] = request.logit_bias
        if tools := request.callable_tools:
            fields["response_format"] = grammar(
                tools, required=request.must_call, parallel=request.parallel_tool_calls
            )
        elif request.response_format.type != "text":
            fields["response_format"] = request.response_format.model_dump(
                by_alias=True, exclude_none=True
            )
        return fields

    def _reader(self) -> AnswerReader:
        fmt, request = self.served.model.format, self.request
        # JSON may hold any text; bound to it, a model cannot begin another thought.
        free = request.response_format.type == "text"
        return AnswerReader(
            AnswerFilter(fmt.thought_marker if free else "", fmt.response_marker),
            ToolCallReader() if request.callable_tools else None,
        )

    def _thought_budget(self) -> int:
        """Most tokens of a thought. Half of what there is stays for the answer."""
        wanted = self.request.max_thought_tokens
        if wanted is None:
            wanted = self.served.model.thought_budget(self.request.reasoning_effort or "medium")
        limit = self.room if self.request.limit is None else min(self.room, self.request.limit)
        return min(wanted, limit - limit // 2)

    def _answer_budget(self, thought: Thought) -> int:
        room = self.room - len(thought.ids)
        limit = self.request.limit
        return room if limit is None else min(room, limit - thought.tokens)

    def _named(self, error: EngineRefused) -> PlatformError:
        """The engine refuses a field that is handed on to it."""
        request = self.request
        handed_on = {
            "tools": request.callable_tools,
            "response_format": request.response_format.type != "text",
            "logit_bias": request.logit_bias,
        }
        for name, given in handed_on.items():
            if given:
                return InvalidRequest(f"{name}: the engine cannot use it", param=name)
        return _without_detail(error)


async def prepare(request: ChatRequest, served: Served) -> Turn:
    """Render the prompt: the thought prompt goes around the newest question only, and earlier
    answers stand there without the thoughts that led to them.

    Raises:
        InvalidRequest: too long, or not what the model's template can render.
    """
    messages = [message.for_template() for message in request.messages]
    question = next(m for m in reversed(messages) if m["role"] == "user")
    question["content"] = served.model.format.prompt(question["content"])
    tools = [tool.model_dump() for tool in request.tools]
    try:
        if tools:
            await served.check_takes_tools()
        prompt_ids = await served.engine.render(messages, tools)
        longest = await served.engine.max_model_len()
    except EngineRefused:
        raise InvalidRequest(
            "messages: the model's chat template refuses this order of roles", param="messages"
        ) from None
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


def _without_detail(error: EngineError) -> PlatformError:
    """The engine's own words may hold what a model wrote."""
    if isinstance(error, EngineAway):
        return Unavailable("the model is not ready; retry shortly", retry_after=5)
    # Most often it is about to end, with all that it has under way.
    return Unavailable("the model failed to answer; retry", code="engine_failed", retry_after=5)
