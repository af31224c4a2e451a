"""Pointwise: a chat model gives each response a score from 0 to 10 by a rubric."""

import asyncio
import itertools
import re
from collections.abc import Sequence

from shared.schemas.judges import Pointwise
from shared.schemas.requests import JudgeItem
from shared.vllm.client import gather_or_cancel
from workers.judge.base import Score
from workers.judge.llm.chat_client import Answer, ChatClient, Question, Token, UsageCounter
from workers.judge.llm.chat_judge import ChatJudge
from workers.judge.llm.verdicts import expected_score, parse_score, pointwise_messages

EXPECTED_TOKENS = 12
"""Maximum tokens of an answer without reasons."""
WORD = re.compile(r"\w")
BEFORE_SCORE = re.compile(r"""score[*_]*:[\s*_"'\[]*$""", re.IGNORECASE)


class PointwiseJudge(ChatJudge[Pointwise]):
    name = "pointwise_llm/2"

    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """Scores in [0, 10], or [0, 9] where they are expected ones."""

        async def run() -> list[Score]:
            async with self._make_client() as client:
                return await gather_or_cancel(self._rate(client, item) for item in items)

        return asyncio.run(run())

    async def _rate(self, client: ChatClient, item: JudgeItem) -> Score:
        spec, usage = self._spec, UsageCounter(client)
        messages = pointwise_messages(
            item.instruction, item.response, rubric=spec.rubric, explain=not spec.expected
        )

        async def one(seed: int) -> float | None:
            question = Question(
                messages,
                EXPECTED_TOKENS if spec.expected else spec.max_tokens,
                temperature=1.0 if spec.samples > 1 else 0.0,
                seed=seed,
                logprobs=spec.expected,
            )
            answer = usage.count(await client.ask(question))
            if spec.expected:
                return _expected(answer)
            return None if answer.text is None else parse_score(answer.text)

        scores = [
            s
            for s in await gather_or_cancel(one(seed) for seed in range(spec.samples))
            if s is not None
        ]
        usage.add({"unreadable": spec.samples - len(scores)})
        if not scores:
            return Score(None, {"reason": "no_score"}, usage.counts())
        details = {"scores": scores} if len(scores) > 1 else {}
        return Score(sum(scores) / len(scores), details, usage.counts())


def _expected(answer: Answer) -> float | None:
    """The mean score by the probabilities at the token after `Score:`, if it is a single digit."""
    text = ""
    for row, after in itertools.pairwise([*answer.tokens, Token("", {})]):
        if BEFORE_SCORE.search(text) and WORD.search(row.text):
            return None if WORD.match(after.text) else expected_score(row.top)
        text += row.text
    return None
