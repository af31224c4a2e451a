"""A mixture: weighted judges, each normalised over the responses to one instruction."""

from collections import Counter
from collections.abc import Sequence

from shared.schemas.judges import MixtureSpec
from shared.schemas.requests import JudgeItem
from shared.thinking.scores import normalized
from workers.judge.base import Judge, Score, by_instruction

Column = list[Score | None]
"""The scores of one judge for all items; None where it does not apply."""


class Mixture(Judge):
    name = "mixture/1"

    def __init__(self, spec: MixtureSpec, judges: Sequence[Judge]) -> None:
        self._judges = judges
        self._weights = [weighted.weight for weighted in spec.judges]
        self.shards_at_once = min(judge.shards_at_once for judge in judges)

    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """Weighted means of standard scores."""
        sizes = [len(group) for group in by_instruction(items)]
        columns = []
        for judge in self._judges:
            at = _applies(judge, items)
            column = _column(len(items), at, judge.score([items[i] for i in at]))
            columns.append(_standard(column, sizes))
        return self._mixed(columns)

    def win_shares(
        self, items: Sequence[JudgeItem], others: Sequence[Sequence[JudgeItem]]
    ) -> list[Score]:
        """Weighted means of the judges' shares."""
        columns = []
        for judge in self._judges:
            at = _applies(judge, items)
            shares = judge.win_shares([items[i] for i in at], [others[i] for i in at])
            columns.append(_column(len(items), at, shares))
        return self._mixed(columns)

    def versions(self) -> dict[str, str]:
        of_parts = (judge.versions().items() for judge in self._judges)
        parts = {f"{key}_{n}": v for n, part in enumerate(of_parts, 1) for key, v in part}
        return {"judge": self.name} | parts

    def _mixed(self, columns: Sequence[Column]) -> list[Score]:
        return [self._mean(row) for row in zip(*columns, strict=True)]

    def _mean(self, row: Sequence[Score | None]) -> Score:
        scored = [(s, w) for s, w in zip(row, self._weights, strict=True) if s is not None]
        counts: Counter[str] = Counter()
        for score, _ in scored:
            counts.update(score.counts)
        details = {"parts": [s and {"score": s.value} | s.details for s in row]}
        values = [(score.value, weight) for score, weight in scored if score.value is not None]
        if not values or len(values) < len(scored):
            # One that fails here must not be judged by the others alone: beside responses that all
            # judges scored, its score would mean something else.
            failed = [s for s, _ in scored if s.value is None]
            reason = failed[0].details.get("reason", "unjudged") if failed else "no_judge_applies"
            return Score(None, {"reason": reason} | details, dict(counts))
        total = sum(value * weight for value, weight in values)
        return Score(total / sum(weight for _, weight in values), details, dict(counts))


def _applies(judge: Judge, items: Sequence[JudgeItem]) -> list[int]:
    return [i for i, item in enumerate(items) if judge.applies(item)]


def _column(size: int, at: Sequence[int], scores: Sequence[Score]) -> Column:
    column: Column = [None] * size
    for i, score in zip(at, scores, strict=True):
        column[i] = score
    return column


def _standard(column: Column, sizes: Sequence[int]) -> Column:
    """Each group's values normalised; the value as it was stands in the details."""
    result = list(column)
    start = 0
    for size in sizes:
        scored = [
            (i, score, score.value)
            for i, score in enumerate(column[start : start + size], start)
            if score is not None and score.value is not None
        ]
        values = normalized([value for _, _, value in scored])
        for (i, score, raw), value in zip(scored, values, strict=True):
            result[i] = Score(value, score.details | {"raw": raw}, score.counts)
        start += size
    return result
