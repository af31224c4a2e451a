import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.judge.llm.elo import Matrix, elo

counts_st = st.sampled_from([0.0, 0.0, 1.0, 2.0, 0.5]) | st.floats(0, 30)
wins_st = st.integers(1, 8).flatmap(
    lambda k: st.lists(st.lists(counts_st, min_size=k, max_size=k), min_size=k, max_size=k)
)
prior_st = st.sampled_from([0.001, 0.1, 1.0, 10.0])


def gradient(wins: Matrix, scores: list[float], prior: float) -> list[float]:
    """Of the objective as it is written, term by term."""
    result = []
    for k, score in enumerate(scores):
        terms = [-prior * score]
        for other, opponent in enumerate(scores):
            if other != k:
                win = 1 / (1 + math.exp(min(opponent - score, 700)))
                terms += [wins[k][other] * (1 - win), -wins[other][k] * win]
        result.append(math.fsum(terms))
    return result


def error_bound(wins: Matrix, prior: float) -> float:
    """How far `elo` can be from the maximum: the objective is strongly concave by `prior`."""
    return math.hypot(*gradient(wins, elo(wins, prior), prior)) / prior


def climbed(wins: Matrix, prior: float) -> list[float]:
    """The maximum by plain gradient ascent."""
    most = max(
        sum(row) + sum(column) for row, column in zip(wins, zip(*wins, strict=True), strict=True)
    )
    scores = [0.0] * len(wins)
    while True:
        slope = gradient(wins, scores, prior)
        if math.hypot(*slope) < 1e-8 * prior:
            return scores
        scores = [s + g / (prior + most / 2) for s, g in zip(scores, slope, strict=True)]


def drawn(rng: random.Random, most: float) -> list[list[float]]:
    """Sparse or dense, whole or broken counts."""
    k, density = rng.randint(1, 8), rng.random()
    whole = rng.random() < 0.5
    return [
        [
            (rng.randint(0, round(most)) if whole else rng.uniform(0, most))
            * (rng.random() < density)
            for _ in range(k)
        ]
        for _ in range(k)
    ]


def test_is_the_maximum_in_thousands_of_cases() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        wins = drawn(rng, rng.choice([2, 10, 1000, 1e6]))
        assert error_bound(wins, 10 ** rng.uniform(-3, 1)) < 1e-6


def test_counts_of_very_different_size() -> None:
    """Newton's whole step diverges in one of two hundred of these."""
    rng = random.Random(5)
    for _ in range(2000):
        k = rng.randint(2, 8)
        wins = [
            [10 ** rng.uniform(-3, 6) * (rng.random() < 0.5) for _ in range(k)] for _ in range(k)
        ]
        assert error_bound(wins, 10 ** rng.uniform(-3, 1)) < 1e-6


def test_is_what_gradient_ascent_climbs_to() -> None:
    rng = random.Random(2)
    for _ in range(100):
        wins = drawn(rng, 2)
        assert elo(wins, 0.5) == pytest.approx(climbed(wins, 0.5), abs=1e-6)


@given(wins_st, prior_st)
def test_maximum_of_mean_zero(wins: Matrix, prior: float) -> None:
    assert error_bound(wins, prior) < 1e-6
    assert math.fsum(elo(wins, prior)) == pytest.approx(0, abs=1e-9)


def test_worked_by_hand() -> None:
    # Two responses, 3 wins to 1: log 3 apart but for the prior.
    strong, weak = elo([[0, 3], [1, 0]], prior=0.001)
    assert strong - weak == pytest.approx(math.log(3), abs=2e-3)
    # One win: the solution of 1 / (1 + exp(2 e)) = prior * e.
    assert elo([[0, 1], [0, 0]], prior=0.1) == pytest.approx([1.0640, -1.0640], abs=1e-3)


@given(wins_st, prior_st, st.randoms(use_true_random=False))
def test_renaming_the_responses_renames_the_scores(
    wins: Matrix, prior: float, rng: random.Random
) -> None:
    order = rng.sample(range(len(wins)), len(wins))
    scores = elo(wins, prior)
    renamed = elo([[wins[m][n] for n in order] for m in order], prior)
    assert renamed == pytest.approx([scores[m] for m in order], abs=1e-6)


@given(wins_st, prior_st)
def test_swapping_wins_and_losses_turns_the_scores_round(wins: Matrix, prior: float) -> None:
    losses = [list(column) for column in zip(*wins, strict=True)]
    assert elo(losses, prior) == pytest.approx([-score for score in elo(wins, prior)], abs=1e-6)


@given(wins_st.filter(lambda wins: len(wins) > 1), prior_st, st.data())
def test_another_win_lifts_the_winner(
    wins: list[list[float]], prior: float, data: st.DataObject
) -> None:
    m, n = data.draw(st.permutations(range(len(wins))))[:2]
    before = elo(wins, prior)
    wins[m][n] += data.draw(st.floats(0, 5))
    after = elo(wins, prior)
    assert after[m] >= before[m] - 1e-6
    assert after[n] <= before[n] + 1e-6


@pytest.mark.parametrize("k", [0, 1, 2, 8])
def test_without_wins_all_are_zero(k: int) -> None:
    assert elo([[0.0] * k for _ in range(k)]) == [0.0] * k


@given(st.integers(2, 8), prior_st)
def test_win_against_itself_counts_for_nothing(k: int, prior: float) -> None:
    assert elo([[float(m == n) for n in range(k)] for m in range(k)], prior) == [0.0] * k


def test_clean_order_stays_finite() -> None:
    scores = elo([[2.0 * (m < n) for n in range(8)] for m in range(8)])
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(4.74, abs=0.01)


def test_groups_never_compared_with_each_other() -> None:
    scores = elo([[0, 2, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 4, 0], [0, 0, 1, 0, 0], [0] * 5])
    assert scores[0] == pytest.approx(-scores[1])
    assert scores[2] == pytest.approx(-scores[3])
    assert scores[4] == pytest.approx(0)
    assert scores[:2] == pytest.approx(elo([[0, 2], [0, 0]]))


@pytest.mark.parametrize(
    ("wins", "prior", "message"),
    [
        ([[0, 1]], 0.1, "square"),
        ([[0, -1], [0, 0]], 0.1, "from 0 to"),
        ([[0, math.nan], [0, 0]], 0.1, "from 0 to"),
        ([[0, 1e7], [0, 0]], 0.1, "from 0 to"),
        ([[0]], 0.0, "at least 0.001"),
        ([[0]], math.inf, "at least 0.001"),
    ],
)
def test_bad_input_is_refused(wins: Matrix, prior: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elo(wins, prior)


def test_sixty_four_responses_are_fast() -> None:
    wins = [[2.0 * (m < n) for n in range(64)] for m in range(64)]
    start = time.process_time()
    elo(wins)
    assert time.process_time() - start < 2  # 0.1 s on an idle core
