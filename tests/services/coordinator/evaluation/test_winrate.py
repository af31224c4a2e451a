"""Win rates against what is known of them, and against slow reckoning of another kind."""

import math
import random
import statistics
import time
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.evaluation import winrate
from services.coordinator.evaluation.scored_outputs import ScoredOutput
from services.coordinator.evaluation.winrate import (
    RIDGE,
    PromptComparison,
    comparisons,
    comparisons_by_share,
    fit,
    length_terms,
    win_rate,
)

samples_st = st.lists(
    st.builds(ScoredOutput, st.none() | st.integers(0, 3).map(float), st.integers(0, 300)),
    min_size=1,
    max_size=3,
)
models_st = st.dictionaries(st.integers(0, 8), samples_st, max_size=8)
comparison_st = st.builds(
    PromptComparison, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-200, 200)
)
comparisons_st = st.lists(comparison_st, min_size=1, max_size=20)


def both_rates(compared: list[PromptComparison]) -> Any:
    """Raw and length-controlled, the latter of few prompts, too: its arithmetic is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winrate, "MIN_EFFECTIVE_SAMPLE_SIZE", 0.0)
        found = win_rate(compared)
    return found and {kind: found[kind] for kind in ("raw", "length_controlled")}


@given(models_st, models_st)
def test_shares_are_counted_pair_by_pair(
    model: dict[int, list[ScoredOutput]], other: dict[int, list[ScoredOutput]]
) -> None:
    found = iter(comparisons(model, other))
    for prompt in sorted(set(model) & set(other)):
        points = []
        for ours, theirs in product(model[prompt], other[prompt]):
            # Whoever has no response has the lowest score of all.
            a, b = (-math.inf if s.score is None else s.score for s in (ours, theirs))
            points.append(1.0 if a > b else 0.5 if a == b else 0.0)
        assert next(found).share == pytest.approx(statistics.fmean(points))
    assert next(found, None) is None


@given(models_st, models_st)
def test_what_one_wins_the_other_loses(
    model: dict[int, list[ScoredOutput]], other: dict[int, list[ScoredOutput]]
) -> None:
    ours, theirs = both_rates(comparisons(model, other)), both_rates(comparisons(other, model))
    if ours is None or theirs is None:
        assert ours is theirs
        return
    for figure in ("raw", "length_controlled"):
        assert ours[figure]["mean"] + theirs[figure]["mean"] == pytest.approx(1, abs=1e-6)


@given(models_st)
def test_against_itself_a_model_wins_half(model: dict[int, list[ScoredOutput]]) -> None:
    rates = both_rates(comparisons(model, model))
    if rates is not None:
        assert rates["raw"]["mean"] == pytest.approx(0.5)
        assert rates["length_controlled"]["mean"] == pytest.approx(0.5)


def test_of_nothing_there_is_no_rate() -> None:
    assert win_rate(comparisons({1: [ScoredOutput(1.0, 1)]}, {2: [ScoredOutput(1.0, 1)]})) is None
    assert win_rate([]) is None


def test_a_share_is_taken_as_it_is_and_no_response_has_won_nothing() -> None:
    model = {1: [ScoredOutput(0.75, 30), ScoredOutput(None, None)], 2: [ScoredOutput(1.0, 10)]}
    seed = {1: [ScoredOutput(0.5, 20)], 2: [ScoredOutput(None, None)]}
    assert comparisons_by_share(model, seed) == [
        PromptComparison(0.375, 10.0),
        PromptComparison(1.0, 0.0),
    ]


def test_a_length_of_no_response_says_nothing() -> None:
    none = ScoredOutput(None, None)
    [comparison] = comparisons(
        {1: [ScoredOutput(1.0, 50), none]}, {1: [ScoredOutput(0.0, 20), none]}
    )
    assert comparison == PromptComparison((1 + 1 + 0 + 0.5) / 4, 30.0)


def slow_fit(shares: list[float], lengths: list[float]) -> tuple[float, float]:
    """The peak of the penalised likelihood by search: one thirds search inside another."""

    def likelihood(theta: float, phi: float) -> float:
        total = -RIDGE / 2 * (theta**2 + phi**2)
        for share, x in zip(shares, lengths, strict=True):
            z = theta + phi * x
            total += share * z - max(z, 0.0) - math.log1p(math.exp(-abs(z)))
        return total

    def peak(f, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
        for _ in range(70):
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (a, high) if f(a) < f(b) else (low, b)
        return (low + high) / 2

    def best_phi(theta: float) -> float:
        return peak(lambda phi: likelihood(theta, phi), -20, 20)

    theta = peak(lambda theta: likelihood(theta, best_phi(theta)), -20, 20)
    return theta, best_phi(theta)


@pytest.mark.parametrize(
    "compared",
    [
        [PromptComparison(1.0, 10.0)] * 5,
        [PromptComparison(1.0, 10.0), PromptComparison(0.0, -10.0)],
        [PromptComparison(0.5, 0.0)] * 3,
        [PromptComparison(i % 3 / 2, (i * 37) % 101 - 50) for i in range(20)],
        [PromptComparison(float(i % 4 > 0), 3.0 * (i % 4) - 4) for i in range(16)],
    ],
)
def test_the_fit_is_the_peak_of_the_likelihood(compared: list[PromptComparison]) -> None:
    shares, lengths = [d.share for d in compared], length_terms([d.longer for d in compared])
    theta, phi = fit(np.array([shares]), lengths[None], np.zeros(2))[0]
    assert (theta, phi) == pytest.approx(slow_fit(shares, [*lengths]), abs=1e-4)


@given(st.lists(st.lists(comparison_st, min_size=6, max_size=6), min_size=1, max_size=5))
def test_rows_are_fitted_as_each_alone_from_wherever(rows: list[list[PromptComparison]]) -> None:
    """A row that needs many steps or short ones moves no other."""
    shares = np.array([[c.share for c in row] for row in rows])
    lengths = np.stack([length_terms([c.longer for c in row]) for row in rows])
    alone = np.concatenate([fit(shares[[i]], lengths[[i]], np.zeros(2)) for i in range(len(rows))])
    assert fit(shares, lengths, np.zeros(2)) == pytest.approx(alone, abs=1e-6)
    assert fit(shares, lengths, np.array([3.0, -3.0])) == pytest.approx(alone, abs=1e-6)


def test_the_interval_is_that_of_fits_to_resampled_prompts() -> None:
    """Resamples drawn otherwise, each fitted from the start instead of from the whole's fit."""
    compared = [PromptComparison(i * 7 % 5 / 4, (i * 37) % 101 - 40) for i in range(25)]
    terms = length_terms([c.longer for c in compared])
    drawn = np.array([random.Random(i).choices(range(25), k=25) for i in range(2000)])
    shares = np.array([c.share for c in compared])
    thetas = fit(shares[drawn], terms[drawn], np.zeros(2))[:, 0]
    rates = [1 / (1 + math.exp(-theta)) for theta in thetas]
    low, high = (statistics.quantiles(rates, n=40)[i] for i in (0, -1))
    found = win_rate(compared)
    assert found is not None
    controlled = found["length_controlled"]
    assert (controlled["low"], controlled["high"]) == pytest.approx((low, high), abs=0.03)


@given(comparisons_st)
def test_an_interval_holds_its_rate_and_stays_between_0_and_1(
    compared: list[PromptComparison],
) -> None:
    rates = both_rates(compared)
    assert rates == both_rates(compared), "the same each time"
    for figure in rates.values():
        assert -1e-9 <= figure["low"] <= figure["mean"] + 1e-9
        assert figure["mean"] - 1e-9 <= figure["high"] <= 1 + 1e-9
        assert figure["n"] == len(compared)


def test_without_a_difference_in_length_there_is_nothing_to_control() -> None:
    rates = win_rate([PromptComparison(float(i % 10 < 7), 0.0) for i in range(1000)])
    assert rates is not None
    assert rates["length_controlled"]["mean"] == pytest.approx(rates["raw"]["mean"], abs=0.001)


def test_a_win_by_length_alone_is_none_under_length_control() -> None:
    """The longer response wins four times of five, whoever's it is; ours are mostly longer."""
    compared = []
    for i in range(1000):
        longer = i % 10 < 8
        favoured = i % 5 != i // 10 % 5
        compared.append(PromptComparison(float(longer == favoured), 40.0 if longer else -40.0))
    rates = win_rate(compared)
    assert rates is not None
    assert rates["raw"]["mean"] > 0.6
    controlled = rates["length_controlled"]
    assert controlled["mean"] == pytest.approx(0.5, abs=0.03)
    assert controlled["low"] < 0.5 < controlled["high"]


def test_it_is_fast_at_full_size() -> None:
    compared = [
        PromptComparison(float(i * 7919 % 10 < 6), (i * 104729) % 400 - 150) for i in range(1500)
    ]
    start = time.process_time()
    win_rate(compared)
    assert time.process_time() - start < 2  # 0.15 s on an idle core
