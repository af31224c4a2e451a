"""How much of the ranking by all ordered pairs a share of the calls keeps, on simulated judges.

`python -m tests.workers.judge.llm.simulate [PROMPTS]` prints the tables, in three minutes for 300.
A real judge is placed among them by its consistency: how often it prefers the same response in both
orders, which a run over all pairs tells.
"""

import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from workers.judge.llm.comparisons import Comparison, Verdicts, all_pairs, calls, next_round, wins
from workers.judge.llm.elo import elo
from workers.judge.llm.verdicts import Verdict

UNREADABLE = 0.02


@dataclass(frozen=True)
class SimulatedJudge:
    """Prefers m shown before n with log-odds quality[m] - quality[n] + quirk[m, n] + liking."""

    name: str
    spread: float
    """Standard deviation of the responses' quality: the less, the more the noise of calls tells."""
    liking: float
    """For the response shown first."""
    quirk: float = 0.0
    """Standard deviation of its own taste about each two responses, alike in both orders."""

    def qualities(self, responses: int, rng: random.Random) -> list[float]:
        return [rng.gauss(0, self.spread) for _ in range(responses)]

    def verdicts(self, qualities: Sequence[float], rng: random.Random) -> dict[Comparison, Verdict]:
        """What it says to each ordered pair: asked again, it says the same."""
        quirks = {(m, n): rng.gauss(0, self.quirk) for m, n in all_pairs(len(qualities)) if m > n}
        answers = {}
        for m, n in all_pairs(len(qualities)):
            quirk = quirks[m, n] if m > n else -quirks[n, m]
            odds = qualities[m] - qualities[n] + quirk + self.liking
            wins_first = rng.random() < 1 / (1 + math.exp(-odds))
            verdict = Verdict.first if wins_first else Verdict.second
            unreadable = rng.random() < UNREADABLE
            answers[Comparison(m, n)] = Verdict.unreadable if unreadable else verdict
        return answers


JUDGES = {
    judge.name: judge
    for judge in (
        SimulatedJudge("weak", spread=1, liking=0.3),
        SimulatedJudge("fair", spread=2, liking=0.5),
        SimulatedJudge("good", spread=3, liking=0.7),
        SimulatedJudge("strong", spread=5, liking=1.0),
        SimulatedJudge("good, but leans to the first", spread=3, liking=1.5),
        SimulatedJudge("strong, with a taste of its own", spread=5, liking=1.0, quirk=2.5),
    )
}


@dataclass(frozen=True)
class Figures:
    """Means over the prompts."""

    consistent: float
    """Pairs with the same winner in both orders, of those where both verdicts can be read."""
    calls: float
    spearman: float
    """Rank correlation with the scores by all pairs."""
    best: float
    """Prompts whose best response is the best by all pairs too, or one of those equal there."""
    worst: float
    both: float
    true: float
    """Rank correlation with the qualities that no judge sees."""
    gap: float
    """Quality between the best and the worst response chosen, as a share of the greatest."""


@dataclass(frozen=True)
class Setting:
    responses: int = 8
    share: float = 1 / 3
    blind: bool = False
    """All in one round, chosen without any verdict."""
    anew: bool = False
    """A second judge like the first, of the same quality and liking, its noise drawn anew."""

    def __str__(self) -> str:
        most = self.responses * (self.responses - 1)
        notes = [", blind" * self.blind, ", another such judge" * self.anew]
        return f"{calls(self.responses, self.share)} of {most}{''.join(notes)}"


SETTINGS = (
    Setting(),
    Setting(blind=True),
    Setting(share=1 / 2),
    Setting(share=1),
    Setting(share=1, anew=True),
    Setting(responses=4),
    Setting(responses=4, share=2 / 3),
    Setting(responses=16),
    Setting(responses=16, share=1 / 6),
)


def figures(
    judge: SimulatedJudge, setting: Setting = SETTINGS[0], *, prompts: int = 300
) -> Figures:
    rows = [_prompt(judge, setting, seed) for seed in range(prompts)]
    return Figures(**{name: fmean(vars(row)[name] for row in rows) for name in vars(rows[0])})


def sampled(
    verdicts: Verdicts, responses: int, budget: int, seed: int
) -> dict[Comparison, Verdict]:
    """Plays the rounds against a judge whose every verdict is known."""
    answers: dict[Comparison, Verdict] = {}
    while batch := next_round(responses, budget, seed, answers):
        answers |= {comparison: verdicts[comparison] for comparison in batch}
    return answers


def _prompt(judge: SimulatedJudge, setting: Setting, seed: int) -> Figures:
    k, rng = setting.responses, random.Random(seed)
    true = judge.qualities(k, rng)
    verdicts = judge.verdicts(true, rng)
    asked = judge.verdicts(true, rng) if setting.anew else verdicts
    known = dict.fromkeys(asked, Verdict.tie) if setting.blind else asked
    answers = {pair: asked[pair] for pair in sampled(known, k, calls(k, setting.share), seed)}
    full, scores = elo(wins(k, verdicts)), elo(wins(k, answers))
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    best_agrees = math.isclose(full[best], max(full), abs_tol=1e-6)
    worst_agrees = math.isclose(full[worst], min(full), abs_tol=1e-6)
    return Figures(
        consistent=_consistent(verdicts),
        calls=len(answers),
        spearman=spearman(scores, full),
        best=best_agrees,
        worst=worst_agrees,
        both=best_agrees and worst_agrees,
        true=spearman(scores, true),
        gap=(true[best] - true[worst]) / (max(true) - min(true)),
    )


def _consistent(verdicts: Verdicts) -> float:
    swapped = {Verdict.first: Verdict.second, Verdict.second: Verdict.first}
    same = [
        swapped[verdict] is verdicts[Comparison(n, m)]
        for (m, n), verdict in verdicts.items()
        if verdict in swapped and verdicts[Comparison(n, m)] in swapped
    ]
    return fmean(same)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, equal values sharing theirs; 0 where all are equal."""
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    middle = (len(a) - 1) / 2
    both = math.fsum((x - middle) * (y - middle) for x, y in zip(ranks_a, ranks_b, strict=True))
    one, other = (math.fsum((x - middle) ** 2 for x in ranks) for ranks in (ranks_a, ranks_b))
    return both / math.sqrt(one * other) if one and other else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    rounded = [round(value, 6) for value in values]
    count = Counter(rounded)
    below = {value: sum(other < value for other in rounded) for value in count}
    return [below[value] + (count[value] - 1) / 2 for value in rounded]


def main(prompts: int) -> None:
    print(f"{prompts} prompts a row; {UNREADABLE:.0%} of the verdicts can't be read.\n")
    for judge in JUDGES.values():
        print(f"{judge.name}: {figures(judge, prompts=prompts).consistent:.0%} consistent\n")
        print("| calls | rank correlation | same best | same worst | both | true ranks | gap |")
        print("|---|---|---|---|---|---|---|")
        for setting in SETTINGS:
            row = figures(judge, setting, prompts=prompts)
            cells = [f"{row.spearman:.3f}", f"{row.best:.0%}", f"{row.worst:.0%}"]
            cells += [f"{row.both:.0%}", f"{row.true:.3f}", f"{row.gap:.0%}"]
            print(f"| {setting} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
