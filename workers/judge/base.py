"""The interface of a judge, which scores responses and sees no thought and no thought prompt."""

import math
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from shared.schemas.requests import JudgeItem


class CannotJudge(Exception):
    """Trying again won't help. Its message is for the user, and quotes no response."""


@dataclass(frozen=True, slots=True)
class Score:
    """Higher is better; the range is the judge's own. `details` is stored as JSON.

    `value` is None where the judge gave none: `details["reason"]` says why.
    """

    value: float | None
    details: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    """Numbers that are summed over a job, such as calls, ties and tokens."""


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """The job that a judge works for, and the engine, if its specification needs one."""

    job_id: uuid.UUID
    engine_url: str = ""


class Judge(ABC):
    name: str
    """Kind and version, e.g. `verifier/1`: stored with every score, raised with every change
    that can change a score."""
    model: str = ""
    """The model that the judge asks, if any."""
    shards_at_once: int = 1
    """More than one keeps the judge's model busy at the end of a shard."""

    @abstractmethod
    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """One score an item, in order. Items of one instruction are next to each other.

        Raises `CannotJudge` where the items or the spec can't be judged at all.
        """

    def applies(self, _: JudgeItem) -> bool:
        """Tell whether the judge can score an item; a mixture leaves it out for others."""
        return True

    def win_shares(
        self, items: Sequence[JudgeItem], others: Sequence[Sequence[JudgeItem]]
    ) -> list[Score]:
        """For each item the share in [0, 1] of its `others` that it wins against; a tie is half.

        `others[i]` are other responses to the instruction of `items[i]`, at least one.
        """
        # Several responses face the same others, which are scored once.
        opponents = list({id(other): other for group in others for other in group}.values())
        theirs = self.score(opponents)
        values = {id(o): score.value for o, score in zip(opponents, theirs, strict=True)}
        shares = [
            _share(score, [values[id(other)] for other in group])
            for score, group in zip(self.score(items), others, strict=True)
        ]
        if shares:
            counts = sum((Counter(s.counts) for s in (shares[0], *theirs)), Counter())
            shares[0] = replace(shares[0], counts=dict(counts))
        return shares

    def versions(self) -> dict[str, str]:
        """Versions of the judge and of its model, kept as lineage."""
        return {"judge": self.name} | ({"judge_model": self.model} if self.model else {})


def _share(score: Score, others: Sequence[float | None]) -> Score:
    values = [other for other in others if other is not None]
    if score.value is None or not values:
        return Score(None, {"reason": "unjudged"} | score.details, score.counts)
    wins = [(score.value > other) + (score.value == other) / 2 for other in values]
    return Score(sum(wins) / len(wins), score.details | {"score": score.value}, score.counts)


def finite(value: float) -> Score:
    """Drop NaN and infinity: Postgres stores them, and every mean would silently become NaN."""
    return Score(value) if math.isfinite(value) else Score(None, {"reason": "not_finite"})


def by_instruction(items: Sequence[JudgeItem]) -> list[list[JudgeItem]]:
    """Group neighbouring items that answer the same instruction."""
    return [list(group) for _, group in groupby(items, key=lambda item: item.instruction)]
