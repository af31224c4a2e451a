"""Scored outputs of a prompt -> its preference pair, or the reason why it has none. Pure.

The best and the worst parsed response by length-controlled score make the pair. An output that
does not parse has no score and enters only as rejected: a prompt whose parsed responses give no
pair of their own offers its best one against an unparsed output, and such parse-failure pairs
are admitted up to a share of the iteration's pairs.

Two samples of the same text never make a pair, even where their token counts set them apart.

Ids, numbers and hashes only, no text: the choices of a whole iteration fit in memory.
"""

import enum
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from services.coordinator.pairs.length_control import length_controlled

TIE = 1e-9
"""Length-controlled scores closer than this are equal; they have a spread of about 1."""


class DropReason(enum.StrEnum):
    """Why a prompt gave no pair."""

    tie = "tie"
    """Its best and its worst response score the same."""
    same_output = "same_output"
    """All its parsed outputs are one text."""
    single_response = "single_response"
    """One response parsed, and there is no other output."""
    no_parsed_response = "no_parsed_response"
    unjudged = "unjudged"
    """The judge gave no score to any response that parsed."""
    parse_failure_cap = "parse_failure_cap"
    """It had a parse-failure pair, one more than the iteration may have."""


@dataclass(frozen=True, slots=True)
class Candidate:
    completion_id: int
    score: float | None
    """The judge's raw score; None where the output does not parse."""
    length: int
    """Tokens of the response."""
    output: str
    """A hash of the whole output: equal texts are told by it."""
    judged: bool = True
    """False where it parses and the judge gave no score: it is in no pair then."""


@dataclass(frozen=True, slots=True)
class ChosenPair:
    prompt_id: int
    chosen: Candidate
    rejected: Candidate
    margin: float | None
    """Difference of the length-controlled scores; None for a parse-failure pair."""

    @property
    def parse_failure(self) -> bool:
        return self.rejected.score is None

    @property
    def by_length_alone(self) -> bool:
        """The judge saw no difference: only length control set the two apart."""
        return self.chosen.score == self.rejected.score


@dataclass(frozen=True)
class PairingReport:
    """Every prompt is accounted for: `kept + sum(dropped.values()) == prompts`."""

    prompts: int
    kept: int
    parse_failure: int
    by_length_alone: int
    dropped: dict[DropReason, int]
    chosen_length: float | None
    """Mean tokens of the chosen response over kept pairs of two responses; None without any.

    Parse-failure pairs are left out of both means: their rejected output has no response.
    """
    rejected_length: float | None

    def as_json(self) -> dict[str, object]:
        return vars(self) | {"dropped": {str(reason): n for reason, n in self.dropped.items()}}


def choose_all(
    prompts: Iterable[tuple[int, Sequence[Candidate]]],
    *,
    rho: float,
    max_parse_failure_fraction: float,
) -> tuple[list[ChosenPair], PairingReport]:
    """Pairs of an iteration in the order of its (prompt id, candidates), and their counts."""
    choices: list[ChosenPair] = []
    dropped: Counter[DropReason] = Counter()
    for prompt_id, candidates in prompts:
        result = choose(prompt_id, candidates, rho)
        if isinstance(result, ChosenPair):
            choices.append(result)
        else:
            dropped[result] += 1
    return settle(choices, dropped, max_parse_failure_fraction)


def settle(
    choices: Sequence[ChosenPair], dropped: Counter[DropReason], max_parse_failure_fraction: float
) -> tuple[list[ChosenPair], PairingReport]:
    """The choices that the cap on parse failures lets be pairs, and all prompts' counts."""
    kept, over_cap = cap_parse_failures(choices, max_parse_failure_fraction)
    if over_cap:
        dropped = dropped + Counter({DropReason.parse_failure_cap: len(over_cap)})
    return kept, _report(kept, dropped)


def choose(prompt_id: int, candidates: Sequence[Candidate], rho: float) -> ChosenPair | DropReason:
    """The pair of one prompt. Equal scores are told apart by the lower completion id."""
    judged = [candidate for candidate in candidates if candidate.judged]
    ordered = sorted(judged, key=lambda candidate: candidate.completion_id)
    parsed = [(c, c.score) for c in ordered if c.score is not None]
    if not parsed:
        all_judged = len(judged) == len(candidates)
        return DropReason.no_parsed_response if all_judged else DropReason.unjudged
    values = length_controlled([score for _, score in parsed], [c.length for c, _ in parsed], rho)
    scored = [(c, value) for (c, _), value in zip(parsed, values, strict=True)]
    high = max(values)
    best = _first_near(high, scored)
    others = [(c, value) for c, value in scored if c.output != best.output]
    if others:
        low = min(value for _, value in others)
        if high - low > TIE:
            return ChosenPair(prompt_id, best, _first_near(low, others), high - low)
    unparsed = next((c for c in ordered if c.score is None), None)
    if unparsed is not None:
        return ChosenPair(prompt_id, best, unparsed, None)
    if others:
        return DropReason.tie
    return DropReason.same_output if len(parsed) > 1 else DropReason.single_response


def _first_near(target: float, scored: Sequence[tuple[Candidate, float]]) -> Candidate:
    return next(candidate for candidate, value in scored if abs(value - target) <= TIE / 2)


def cap_parse_failures(
    choices: Sequence[ChosenPair], fraction: float
) -> tuple[list[ChosenPair], list[ChosenPair]]:
    """(kept, dropped), both in order: at most `fraction` of the kept are parse-failure pairs.

    The earlier ones are kept, and as many as the cap allows; parsed pairs are always kept.
    """
    failures = sum(choice.parse_failure for choice in choices)
    room = _most_failures(len(choices) - failures, failures, fraction)
    kept: list[ChosenPair] = []
    dropped: list[ChosenPair] = []
    for choice in choices:
        if choice.parse_failure and room == 0:
            dropped.append(choice)
            continue
        room -= choice.parse_failure
        kept.append(choice)
    return kept, dropped


def _most_failures(parsed: int, failures: int, fraction: float) -> int:
    """The largest f <= failures with f <= fraction * (parsed + f)."""
    # The fraction as it is written: 0.3 as a float is a little less than three tenths.
    share = Fraction(str(fraction))
    if share >= 1:
        return failures
    return min(failures, math.floor(share * parsed / (1 - share)))


def _report(kept: Sequence[ChosenPair], dropped: Counter[DropReason]) -> PairingReport:
    parsed = [choice for choice in kept if not choice.parse_failure]
    return PairingReport(
        prompts=len(kept) + dropped.total(),
        kept=len(kept),
        parse_failure=len(kept) - len(parsed),
        by_length_alone=sum(choice.by_length_alone for choice in parsed),
        dropped=dict(dropped),
        chosen_length=_mean([choice.chosen.length for choice in parsed]),
        rejected_length=_mean([choice.rejected.length for choice in parsed]),
    )


def _mean(lengths: Sequence[int]) -> float | None:
    return sum(lengths) / len(lengths) if lengths else None
