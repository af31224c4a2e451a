"""Chooses the responses of a prompt to compare, out of K(K-1) ordered pairs. Pure and seeded.

The first round is a ring in random order: it joins all responses, and shows each one once first
and once second. Each later round takes the pairs nearest in score by the verdicts so far, as those
are what the ranking is least sure of, and none in its other order while there is a pair not yet
compared. Whoever was shown first less often is shown first, so a judge's liking for a position
cancels out.

The pairs of a round don't wait for each other. The next round follows from the answers alone, so
a process that was killed goes on from those it has stored.
"""

import math
import random
from collections.abc import Mapping
from typing import NamedTuple

from workers.judge.llm.elo import elo
from workers.judge.llm.verdicts import Verdict

LATER_ROUNDS = 2
"""Ten would lift the rank correlation with all pairs by 0.01, and each waits for a judge."""
SWAPPED: Mapping[Verdict | None, Verdict] = {
    Verdict.first: Verdict.second,
    Verdict.second: Verdict.first,
    Verdict.tie: Verdict.tie,
}


class Comparison(NamedTuple):
    """Indices of the responses as they are shown to the judge."""

    first: int
    second: int


Verdicts = Mapping[Comparison, Verdict]


def all_pairs(responses: int) -> list[Comparison]:
    return [Comparison(m, n) for m in range(responses) for n in range(responses) if m != n]


def calls(responses: int, share: float) -> int:
    """A budget: `share` of all ordered pairs, but no fewer than the ring has."""
    most = responses * (responses - 1)
    return min(most, max(responses, math.floor(share * most + 1e-9)))


def next_round(responses: int, budget: int, seed: int, answers: Verdicts) -> list[Comparison]:
    """The comparisons to ask for now; none when the budget is spent.

    Give it every answer so far, in any order. Where a round is answered in part it returns the
    rest of it. A budget of K(K-1) or more gives all ordered pairs in one round. Raises ValueError
    for a budget that has no room for the ring.
    """
    rng = random.Random(seed)
    known: dict[Comparison, Verdict] = {}
    for size in _sizes(responses, budget):
        if size == responses * (responses - 1):
            batch = all_pairs(responses)
        elif not known:
            batch = _ring(responses, rng)
        else:
            batch = _nearest(responses, size, known, rng)
        if missing := [comparison for comparison in batch if comparison not in answers]:
            return missing
        known |= {comparison: answers[comparison] for comparison in batch}
    return []


def wins(responses: int, answers: Verdicts) -> list[list[float]]:
    """Count how often each beat each other, for `elo`, without ties and unreadable verdicts."""
    counts = [[0.0] * responses for _ in range(responses)]
    for (first, second), verdict in answers.items():
        if verdict is Verdict.first:
            counts[first][second] += 1
        elif verdict is Verdict.second:
            counts[second][first] += 1
    return counts


def agreement(answers: Verdicts) -> dict[str, int]:
    """Count the pairs with a readable verdict in both orders by whether the two agree. Where they
    differ, the judge looked at the position, or tossed a coin."""
    agree = differ = 0
    for (first, second), verdict in answers.items():
        other = answers.get(Comparison(second, first))
        if first < second and verdict in SWAPPED and other in SWAPPED:
            agree += verdict is SWAPPED[other]
            differ += verdict is not SWAPPED[other]
    return {"orders_agree": agree, "orders_differ": differ}


def _sizes(responses: int, budget: int) -> list[int]:
    """Comparisons of each round."""
    if responses < 2:
        return []
    if budget < responses:
        raise ValueError(f"{responses} responses need {responses} comparisons, not {budget}")
    if budget >= responses * (responses - 1):
        return [responses * (responses - 1)]
    left = budget - responses
    later = [left * (i + 1) // LATER_ROUNDS - left * i // LATER_ROUNDS for i in range(LATER_ROUNDS)]
    return [responses, *filter(None, later)]


def _ring(responses: int, rng: random.Random) -> list[Comparison]:
    order = rng.sample(range(responses), responses)
    return [Comparison(order[i - 1], order[i]) for i in range(responses)]


def _nearest(responses: int, size: int, answers: Verdicts, rng: random.Random) -> list[Comparison]:
    scores = elo(wins(responses, answers))
    lead = [0] * responses
    asked: set[Comparison] = set()
    chosen: list[Comparison] = []

    def add(comparison: Comparison) -> None:
        asked.add(comparison)
        lead[comparison.first] += 1
        lead[comparison.second] -= 1

    for comparison in answers:
        add(comparison)
    pairs = [Comparison(m, n) for m in range(responses) for n in range(m)]
    rng.shuffle(pairs)
    # Rounded, so that another machine's last bit doesn't choose another pair.
    pairs.sort(key=lambda pair: round(abs(scores[pair.first] - scores[pair.second]), 6))
    in_one_order = [pair for pair in pairs if asked.isdisjoint(_orders(pair))]
    for pair in [*in_one_order, *pairs]:
        if len(chosen) < size and (new := [c for c in _orders(pair) if c not in asked]):
            chosen.append(min(new, key=lambda comparison: lead[comparison.first]))
            add(chosen[-1])
    return chosen


def _orders(pair: Comparison) -> list[Comparison]:
    return [pair, Comparison(pair.second, pair.first)]
