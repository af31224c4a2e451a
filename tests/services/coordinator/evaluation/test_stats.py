"""Bootstrap intervals against what is known of them."""

import statistics
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.evaluation import stats
from services.coordinator.evaluation.stats import Interval, mean_interval

differences_st = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(differences_st)
def test_interval_lies_within_the_data(differences: list[float]) -> None:
    found = mean_interval(differences)
    assert found.mean == pytest.approx(statistics.fmean(differences))
    assert min(differences) - 1e-6 <= found.low <= found.high <= max(differences) + 1e-6
    assert found.n == len(differences)
    assert mean_interval(differences) == found, "the same each time"


def test_interval_of_few() -> None:
    assert mean_interval([]) == Interval(0.0, 0.0, 0.0, 0)
    assert mean_interval([0.3]) == Interval(0.3, 0.3, 0.3, 1)
    equal = mean_interval([0.1] * 3)
    assert (equal.low, equal.mean, equal.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_interval_is_that_of_the_normal_approximation() -> None:
    differences = [((i * 7919) % 1000) / 1000 - 0.4 for i in range(1000)]
    found = mean_interval(differences)
    half = 1.96 * statistics.pstdev(differences) / 1000**0.5
    assert found.mean == pytest.approx(0.0995)
    assert found.low == pytest.approx(found.mean - half, abs=0.002)
    assert found.high == pytest.approx(found.mean + half, abs=0.002)


def test_interval_is_fast_at_full_size() -> None:
    start = time.process_time()
    mean_interval([(i % 7) / 7 for i in range(1500)])
    assert time.process_time() - start < 1  # 0.03 s on an idle core


def test_memory_is_bounded_and_chunks_are_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "CHUNK_NUMBERS", 700)
    shapes = [rows.shape for rows in stats.resamples(100, 30)]
    assert shapes == [(7, 100)] * 4 + [(2, 100)]
    assert [rows.shape for rows in stats.resamples(1000, 2)] == [(1, 1000)] * 2


def test_an_interval_covers_the_true_mean_about_19_times_in_20() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = mean_interval([*generator.exponential(size=100)])
        covered += found.low <= 1 <= found.high
    assert 0.91 < covered / 400 < 0.97
