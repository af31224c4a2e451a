"""Means over prompts with their 95% bootstrap intervals. Pure arithmetic."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 1
CONFIDENCE = 0.95
CHUNK_NUMBERS = 250_000
"""Numbers drawn at once, which bounds memory whatever the number of prompts."""

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` prompts with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float | int]:
        return asdict(self)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of one value per prompt, with its 95% bootstrap percentile interval.

    Whole prompts are resampled with a fixed seed, so the same values give the same interval.
    One value is its own interval. No values give zeros, so read the interval beside its count.
    """
    n = len(values)
    if n == 0:
        return Interval(0.0, 0.0, 0.0, 0)
    mean = math.fsum(values) / n
    # Centred first: equal values then give an interval of exactly one point.
    centred = np.asarray(values, dtype=float) - mean
    means = np.concatenate([centred[rows].mean(axis=1) for rows in resamples(n, RESAMPLES)])
    low, high = percentiles(means)
    return Interval(mean, mean + low, mean + high, n)


def resamples(n: int, times: int) -> Iterator[Indices]:
    """Indices of `n` prompts drawn with replacement, `times` rows of them, in chunks of rows."""
    generator = np.random.default_rng(SEED)
    rows = max(1, CHUNK_NUMBERS // n)
    for start in range(0, times, rows):
        yield generator.integers(n, size=(min(rows, times - start), n))


def percentiles(estimates: Numbers) -> tuple[float, float]:
    """The bounds that leave out the lowest and the highest 2.5% of the estimates."""
    ordered = np.sort(estimates)
    tail = round((1 - CONFIDENCE) / 2 * len(ordered))
    return float(ordered[tail]), float(ordered[-1 - tail])
