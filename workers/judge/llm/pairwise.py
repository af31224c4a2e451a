"""Pairwise: a chat model compares two responses at a time; the scores are Elo ratings."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence

from shared.schemas.judges import Pairwise
from shared.schemas.requests import JudgeItem
from shared.vllm.client import gather_or_cancel
from workers.judge.base import Score, by_instruction
from workers.judge.llm.chat_client import ChatClient, Question, UsageCounter
from workers.judge.llm.chat_judge import ChatJudge
from workers.judge.llm.comparisons import Comparison, Verdicts, agreement, calls, next_round, wins
from workers.judge.llm.elo import elo
from workers.judge.llm.verdicts import Verdict, pairwise_messages, parse_verdict

BOTH_ORDERS = (Comparison(0, 1), Comparison(1, 0))
SHARE = {Verdict.first: 1.0, Verdict.second: 0.0, Verdict.tie: 0.5}


class PairwiseJudge(ChatJudge[Pairwise]):
    name = "pairwise/1"

    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """Elo ratings in nats, mean zero over the responses to one instruction."""

        async def run() -> list[list[Score]]:
            async with self._make_client() as client:
                return await gather_or_cancel(
                    self._rate(client, group) for group in by_instruction(items)
                )

        return [score for group in asyncio.run(run()) for score in group]

    def win_shares(
        self, items: Sequence[JudgeItem], others: Sequence[Sequence[JudgeItem]]
    ) -> list[Score]:
        async def run() -> list[Score]:
            async with self._make_client() as client:
                pairs = zip(items, others, strict=True)
                return await gather_or_cancel(
                    self._versus(client, item, group) for item, group in pairs
                )

        return asyncio.run(run())

    async def _rate(self, client: ChatClient, group: Sequence[JudgeItem]) -> list[Score]:
        """Equal texts are compared once and rated alike."""
        instruction = group[0].instruction
        texts = list(dict.fromkeys(item.response for item in group))
        budget, seed = calls(len(texts), self._spec.share), _seed(instruction)
        answers: dict[Comparison, Verdict] = {}
        usage = UsageCounter(client)
        while batch := next_round(len(texts), budget, seed, answers):
            questions = [(texts[pair.first], texts[pair.second]) for pair in batch]
            verdicts = await self._ask(client, usage, instruction, questions)
            answers |= dict(zip(batch, verdicts, strict=True))
        usage.add(agreement(answers))
        ratings = elo(wins(len(texts), answers))
        of_text = {t: _score(i, answers, ratings) for i, t in enumerate(texts)}
        scores = [of_text[item.response] for item in group]
        first = scores[0]
        return [Score(first.value, first.details, usage.counts()), *scores[1:]]

    async def _versus(
        self, client: ChatClient, item: JudgeItem, others: Sequence[JudgeItem]
    ) -> Score:
        usage = UsageCounter(client)
        shares = await gather_or_cancel(
            self._share(client, usage, item.instruction, item.response, other.response)
            for other in others
        )
        known = [share for share in shares if share is not None]
        if not known:
            return Score(None, {"reason": "no_verdict"}, usage.counts())
        return Score(sum(known) / len(known), {"compared": len(known)}, usage.counts())

    async def _share(
        self, client: ChatClient, usage: UsageCounter, instruction: str, mine: str, theirs: str
    ) -> float | None:
        """The share that `mine` wins over both orders; the same text is a tie, without a call."""
        if mine == theirs:
            return 0.5
        verdicts = await self._ask(client, usage, instruction, [(mine, theirs), (theirs, mine)])
        usage.add(agreement(dict(zip(BOTH_ORDERS, verdicts, strict=True))))
        first, second = (SHARE.get(verdict) for verdict in verdicts)
        shares = [first, None if second is None else 1 - second]
        readable = [share for share in shares if share is not None]
        return sum(readable) / len(readable) if readable else None

    async def _ask(
        self,
        client: ChatClient,
        usage: UsageCounter,
        instruction: str,
        shown: Sequence[tuple[str, str]],
    ) -> list[Verdict]:
        async def one(first: str, second: str) -> Verdict:
            messages = pairwise_messages(instruction, first, second)
            answer = usage.count(await client.ask(Question(messages, self._spec.max_tokens)))
            return Verdict.unreadable if answer.text is None else parse_verdict(answer.text)

        verdicts = await gather_or_cancel(one(first, second) for first, second in shown)
        usage.add({f"verdict_{verdict}": n for verdict, n in Counter(verdicts).items()})
        return verdicts


def _score(at: int, answers: Verdicts, ratings: Sequence[float]) -> Score:
    verdicts = [v for pair, v in answers.items() if at in pair]
    unreadable = verdicts.count(Verdict.unreadable)
    if verdicts and unreadable == len(verdicts):
        return Score(None, {"reason": "no_verdict", "compared": len(verdicts)})
    return Score(ratings[at], {"compared": len(verdicts), "unreadable": unreadable})


def _seed(instruction: str) -> int:
    """Seed the choice of pairs by the instruction alone: a shard done again asks the same."""
    return int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:8], "big")
