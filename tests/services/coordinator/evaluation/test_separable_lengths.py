"""The length-controlled rate and its limits, on comparisons whose truth is known."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.evaluation import winrate
from services.coordinator.evaluation.winrate import (
    INSEPARABLE,
    PromptComparison,
    effective_sample_size,
    length_terms,
    win_rate,
)


def simulated(
    rng: random.Random, prompts: int, longer: float, rate: float, effect: float
) -> list[PromptComparison]:
    """The first model is longer by `longer` standard deviations on average, which moves who wins by
    `effect`; at equal length it wins `rate`."""
    compared, theta = [], math.log(rate / (1 - rate))
    for _ in range(prompts):
        d = rng.gauss(longer, 1)
        chance = 1 / (1 + math.exp(-theta - effect * math.tanh(d)))
        compared.append(PromptComparison(float(rng.random() < chance), d))
    return compared


@pytest.mark.parametrize(("rate", "effect"), [(0.8, 0.0), (0.5, 2.0)])
def test_a_rate_that_is_given_is_the_true_one_however_much_longer_a_model_is(
    monkeypatch: pytest.MonkeyPatch, rate: float, effect: float
) -> None:
    """Longer nearly always, its rate of 0.8 would come out as 0.67, and one of 0.5 as 0.7."""
    monkeypatch.setattr(winrate, "RESAMPLES", 100)
    rng, rates_given = random.Random(1), {}
    for longer in (0.0, 1.0, 2.0, 4.0, 6.0):
        rates = [win_rate(simulated(rng, 120, longer, rate, effect)) for _ in range(20)]
        found = [r["length_controlled"] for r in rates if r and r["length_controlled"]]
        rates_given[longer] = len(found)
        if found:
            assert statistics.fmean(f["mean"] for f in found) == pytest.approx(rate, abs=0.04)
            assert sum(f["low"] <= rate <= f["high"] for f in found) >= 0.75 * len(found)
    assert rates_given[0.0] == rates_given[1.0] == 20
    assert rates_given[4.0] == rates_given[6.0] == 0


@pytest.mark.parametrize(
    "compared",
    [
        [PromptComparison(float(i % 5 > 0), 30.0) for i in range(1000)],
        [PromptComparison(float(i % 5 > 0), 200.0 + i % 20) for i in range(1000)],
        [PromptComparison(float(i % 5 > 0), float(i % 2) - 0.5) for i in range(19)],
    ],
    ids=["always as much longer", "always longer", "few prompts"],
)
def test_where_length_cannot_be_separated_a_note_says_so(
    compared: list[PromptComparison],
) -> None:
    found = win_rate(compared)
    assert found is not None
    assert (found["length_controlled"], found["note"]) == (None, INSEPARABLE)
    assert found["raw"]["n"] == len(compared)


@given(st.lists(st.integers(-300, 300).map(float), min_size=1, max_size=20))
def test_no_difference_in_length_tells_more_than_none(longer: list[float]) -> None:
    assert -1e-9 <= effective_sample_size(length_terms(longer)) <= len(longer)
    assert effective_sample_size(length_terms(longer)) == pytest.approx(
        effective_sample_size(length_terms([-d for d in longer]))
    )
    both_ways = length_terms([*longer, *(-d for d in longer)])
    assert effective_sample_size(both_ways) == pytest.approx(2 * len(longer))
