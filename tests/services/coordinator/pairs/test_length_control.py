import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.pairs.length_control import length_controlled

scores_st = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
responses_st = st.lists(
    st.tuples(scores_st, st.integers(0, 10_000).map(float)), min_size=1, max_size=16
)
rho_st = st.floats(0, 0.5)


def reference(values: list[float]) -> list[float]:
    """N(v) by the book, in exact rational arithmetic."""
    if len(set(values)) == 1:
        return [0.0] * len(values)
    mean, std = statistics.mean(values), statistics.pstdev(values)
    return [(value - mean) / std for value in values]


@given(responses_st, rho_st)
def test_is_the_formula(responses: list[tuple[float, float]], rho: float) -> None:
    scores, lengths = [s for s, _ in responses], [n for _, n in responses]
    expected = [s - rho * n for s, n in zip(reference(scores), reference(lengths), strict=True)]
    assert length_controlled(scores, lengths, rho) == pytest.approx(expected, abs=1e-6)


def test_worked_by_hand() -> None:
    # N(1, 3) = (-1, 1); N(10, 30) = (-1, 1).
    assert length_controlled([1, 3], [10, 30], 0.25) == pytest.approx([-0.75, 0.75])
    assert length_controlled([1, 3], [30, 10], 0.5) == pytest.approx([-1.5, 1.5])


@pytest.mark.parametrize(
    "constant", [[0.1] * 3, [0.3, 0.1 + 0.2], [0.0, 1e-17], [1e300] * 5, [1e9, 1e9 + 1e-4], [7.0]]
)
def test_no_spread_gives_zeros(constant: list[float]) -> None:
    assert length_controlled(constant, [5.0] * len(constant), 0.5) == [0.0] * len(constant)


@pytest.mark.parametrize("extreme", [[1e-11, 0, 0], [1e308, -1e308], [1e200, 2e200, 3e200]])
def test_normalizes_extreme_scales(extreme: list[float]) -> None:
    values = length_controlled(extreme, [1.0] * len(extreme), 0.0)
    assert statistics.pstdev(values) == pytest.approx(1)


@given(responses_st, st.floats(0.1, 100), st.floats(-100, 100))
def test_the_judges_scale_does_not_matter(
    responses: list[tuple[float, float]], scale: float, shift: float
) -> None:
    scores, lengths = [s for s, _ in responses], [n for _, n in responses]
    moved = [round(score * scale + shift, 6) for score in scores]
    if max(moved) - min(moved) < 1:
        return
    expected = length_controlled(scores, lengths, 0.25)
    assert length_controlled(moved, lengths, 0.25) == pytest.approx(expected, abs=1e-3)


@given(st.lists(st.integers(1, 5000).map(float), min_size=2, max_size=8), rho_st)
def test_among_equal_scores_the_shorter_is_better(lengths: list[float], rho: float) -> None:
    values = length_controlled([1.0] * len(lengths), lengths, rho)
    by_length = [value for _, value in sorted(zip(lengths, values, strict=True))]
    assert all(a >= b - 1e-9 for a, b in pairwise(by_length))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 scores but 1 lengths"):
        length_controlled([1, 2], [1], 0.1)
    with pytest.raises(ValueError, match="finite"):
        length_controlled([1, float("nan")], [1, 2], 0.1)


def test_no_responses() -> None:
    assert length_controlled([], [], 0.25) == []
