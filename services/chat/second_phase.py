"""Phase 2 of a turn: what the engine writes behind a thought, as the request binds it."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from services.chat.schema import ChatRequest
from services.chat.serving import Served
from services.chat.tool_calls import BEGIN, END, grammar
from shared.thinking.answer_filter import AnswerFilter
from shared.thinking.formats import Marks
from shared.thinking.generation import respond_seed
from shared.thinking.thoughts import Thought
from shared.vllm.answers import Choice
from shared.vllm.sampling import SamplingParams

MAX_SPACES = 4
"""Times that the engine is asked to go on after a stop string that fires before the first word."""


@dataclass(frozen=True)
class SecondPhase:
    request: ChatRequest
    served: Served

    thought: Thought
    """The thought that the answer is written behind."""

    def filter(self) -> AnswerFilter:
        """Keeps thoughts out of the answer."""
        calls = Marks(BEGIN, END) if self.request.callable_tools else None
        return AnswerFilter(self._marks, cut_before=self._cut_before, calls=calls)

    @property
    def _is_free(self) -> bool:
        """JSON may hold any text, and bound to it, a model cannot go on or begin to think."""
        return self.request.response_format.type == "text"

    @property
    def _marks(self) -> Sequence[Marks]:
        """Markers of thoughts that may begin in the answer."""
        return self.served.model.format.marks if self._is_free else ()

    @property
    def _cut_before(self) -> str:
        """The marker that a thought which was cut short may yet write."""
        was_cut = self._is_free and self.thought.was_cut
        return self.served.model.format.response_marker if was_cut else ""

    async def draw(self, prompt: list[int], budget: int, seed: int) -> AsyncGenerator[Choice]:
        """At most `budget` tokens that continue the prompt, which ends with the thought. White
        space there belongs to neither thought nor answer, so a stop string that fires in it does
        not end the answer."""
        params, said = await self._sampling(seed, budget), False
        for attempt in range(MAX_SPACES):
            written, fired = 0, False
            drawn = self._drawn(list(prompt), replace(params, max_tokens=budget))
            async with aclosing(drawn) as pieces:
                async for piece in pieces:
                    prompt += piece.token_ids
                    written += len(piece.token_ids)
                    said |= bool(piece.text.strip())
                    may_go_on = not said and written < budget and attempt + 1 < MAX_SPACES
                    fired = may_go_on and str(piece.stop_reason or "").isspace()
                    yield replace(piece, finish_reason=None, stop_reason=None) if fired else piece
            budget -= written
            if not fired:
                return

    async def _sampling(self, seed: int, budget: int) -> SamplingParams:
        request = self.request
        return SamplingParams(
            max_tokens=budget,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=respond_seed(seed) if self.served.model.format.thinks else seed,
            # Until there are so many, vLLM looks for no stop string.
            min_tokens=0 if request.stops else 1,
            stop=request.stops,
            skip_special_tokens=not await self._must_see_special_tokens(),
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            logit_bias=request.logit_bias or None,
            response_format=self._response_format(),
        )

    async def _drawn(self, prompt: list[int], params: SamplingParams) -> AsyncGenerator[Choice]:
        """The pieces of one request to the engine."""
        engine = self.served.engine
        async with self.served.phase() as confirm:
            if not self.request.stream:
                [whole] = await engine.complete(prompt, params)
                await confirm()
                yield whole
                return
            async with engine.stream(prompt, params) as pieces:
                async for piece in pieces:
                    await confirm()
                    yield piece

    async def _must_see_special_tokens(self) -> bool:
        """Tell if special tokens must be in the text, since a marker in the answer may be one. The
        model's own end is never part of the text, since no stop is included."""
        if self.request.callable_tools:
            return True
        tokenize = self.served.engine.tokenize
        looked_for = {m for m in (*chain(*self._marks), self._cut_before) if m}
        return any([len(await tokenize(m)) == 1 for m in sorted(looked_for)])

    def _response_format(self) -> dict[str, Any] | None:
        request = self.request
        if tools := request.callable_tools:
            return grammar(tools, required=request.must_call, parallel=request.parallel_tool_calls)
        if request.response_format.type != "text":
            return request.response_format.model_dump(by_alias=True, exclude_none=True)
        return None
