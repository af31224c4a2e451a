"""A chat turn: think in private, then answer. A client only ever sees what the second phase made.

`Turn.think` runs phase 1 for all choices; `Turn.answer` runs one choice's phase 2. Streamed or not,
an answer is read in one way, so both are the same text with the same usage.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from services.chat import metrics
from services.chat.admission import cancelled
from services.chat.answer import AnswerReader, Piece
from services.chat.conversation import Conversation, without_detail
from services.chat.schema import ChatRequest
from services.chat.second_phase import SecondPhase
from services.chat.serving import Served
from services.chat.tool_calls import ToolCallReader
from shared.errors import InvalidRequest, PlatformError
from shared.thinking.generation import SEEDS, think
from shared.thinking.sampling import GREEDY_BELOW
from shared.thinking.thoughts import Thought
from shared.vllm.answers import EngineFailed, EngineRefused
from shared.vllm.client import gather_or_cancel
from shared.vllm.sampling import SamplingParams


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
    """One request as it is answered."""

    request: ChatRequest
    conversation: Conversation
    seed: int
    prompt_ids: list[int]
    thoughts: list[Thought] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    first_answer: metrics.FirstAnswer = field(default_factory=metrics.FirstAnswer)

    @property
    def served(self) -> Served:
        return self.conversation.served

    async def think(self) -> None:
        """Phase 1, of all choices at once."""
        if self.served.model.format.thinks:
            await self._first_phase()
            self.thoughts *= self.request.n // len(self.thoughts)
            for thought in self.thoughts:
                metrics.THOUGHT_TOKENS.observe(thought.tokens)
                metrics.THOUGHTS_CUT.inc(thought.was_cut)
        else:
            self.thoughts = [Thought([], "", 0, forced=False)] * self.request.n
        self.usage.prompt_tokens = len(self.prompt_ids)
        self.usage.reasoning_tokens = sum(thought.tokens for thought in self.thoughts)

    async def _first_phase(self) -> None:
        fmt = self.served.model.format
        room = self.room - len(fmt.prefix.encode())  # no token has less than a byte
        params = self._sampling(self._thought_budget(room))
        try:
            async with self.served.phase():
                self.thoughts = await think(self.served.engine, self.prompt_ids, fmt, params)
        except EngineFailed as error:
            raise without_detail(error) from None

    def _sampling(self, budget: int) -> SamplingParams:
        """The sampling of phase 1. Greedy thoughts are all equal, and vLLM draws only one."""
        return SamplingParams(
            n=1 if self.request.temperature < GREEDY_BELOW else self.request.n,
            max_tokens=budget,
            temperature=self.request.temperature,
            top_p=self.request.top_p,
            seed=self.seed,
        )

    async def answer(self, choice: int) -> AsyncGenerator[Piece]:
        """Phase 2 of one choice, behind its thought."""
        thought = self.thoughts[choice]
        budget = self._answer_budget(thought)
        if budget <= 0:
            yield Piece(finish_reason="length")
            return
        phase = SecondPhase(self.request, self.served, thought)
        tools = ToolCallReader() if self.request.callable_tools else None
        reader = AnswerReader(phase.filter(), tools)
        try:
            drawn = phase.draw([*self.prompt_ids, *thought.ids], budget, self.seed + choice)
            async with aclosing(drawn) as pieces:
                async for piece in pieces:
                    self.usage.answer_tokens += len(piece.token_ids)
                    metrics.ANSWER_TOKENS.inc(len(piece.token_ids))
                    yield reader.read(piece)
        except EngineRefused as error:
            raise self._named(error) from None
        except EngineFailed as error:
            raise without_detail(error) from None
        finally:
            metrics.LEAKS_BLOCKED.inc(reader.hidden)

    @property
    def room(self) -> int:
        """Tokens between the prompt's end and that of the model's context."""
        return self.conversation.longest - len(self.prompt_ids)

    def _thought_budget(self, room: int) -> int:
        """Most tokens of a thought. Half of what there is stays for the answer."""
        wanted = self.request.max_thought_tokens
        if wanted is None:
            wanted = self.served.model.thought_budget(self.request.reasoning_effort or "medium")
        limit = room if self.request.limit is None else min(room, self.request.limit)
        return min(wanted, limit - limit // 2)

    def _answer_budget(self, thought: Thought) -> int:
        room = self.room - len(thought.ids)
        limit = self.request.limit
        return room if limit is None else min(room, limit - thought.tokens)

    def _named(self, error: EngineRefused) -> PlatformError:
        """The engine refuses a field that is handed on to it. It names the field, of a grammar not
        always; what else it says may hold what a model wrote."""
        request = self.request
        ours: dict[str | None, str] = {"logit_bias": "logit_bias", "logprobs": "top_logprobs"}
        if request.callable_tools or request.response_format.type != "text":
            grammar = "tools" if request.callable_tools else "response_format"
            ours |= {"response_format": grammar, None: grammar}
        name = ours.get(error.field)
        if name is None:
            return without_detail(error)
        return InvalidRequest(f"{name}: the engine cannot use it", param=name)


async def prepare(request: ChatRequest, served: Served) -> Turn:
    """Make a turn of a request, with its conversation rendered to token ids.

    Raises:
        InvalidRequest: too long, or not what the model's template can render.
    """
    conversation = await Conversation.of(request, served)
    # One and the same engine request repeats a whole choice; the engine adds k for choice k.
    seed = random.randrange(SEEDS) if request.seed is None else request.seed % SEEDS
    return Turn(request, conversation, seed, await conversation.render())


async def merge_choices(turn: Turn) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of all choices with their numbers, as they come."""
    if turn.request.n == 1:
        async with aclosing(turn.answer(0)) as pieces:
            async for piece in pieces:
                turn.first_answer.see(piece)
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()

    async def pump(choice: int) -> None:
        async with aclosing(turn.answer(choice)) as pieces:
            async for piece in pieces:
                turn.first_answer.see(piece)
                await queue.put((choice, piece))

    async def pump_all() -> None:
        try:
            await gather_or_cancel(pump(choice) for choice in range(turn.request.n))
        finally:
            await queue.put(None)

    task = asyncio.create_task(pump_all())
    try:
        while (item := await queue.get()) is not None:
            yield item
        await task
    finally:
        await cancelled(task)
