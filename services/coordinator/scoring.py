"""Length control of judge scores, and the interval of a mean difference. Pure arithmetic."""

import math
import random
from collections.abc import Sequence

RESAMPLES = 2000
SEED = 1
CONFIDENCE = 0.95


def length_controlled(scores: Sequence[float], lengths: Sequence[float], rho: float) -> list[float]:
    """`N(scores) - rho * N(lengths)` over the responses of one prompt.

    `N(v) = (v - mean) / std` with the population's std; no spread gives all zeros. `lengths`
    are those of the responses, without thoughts. Source: Wu et al., arXiv 2410.10630, section 2.
    Raises ValueError where the two differ in number or hold NaN or infinity.
    """
    if len(scores) != len(lengths):
        raise ValueError(f"{len(scores)} scores but {len(lengths)} lengths")
    normal_scores, normal_lengths = _normalized(scores), _normalized(lengths)
    return [s - rho * n for s, n in zip(normal_scores, normal_lengths, strict=True)]


def _normalized(values: Sequence[float]) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise ValueError("scores and lengths must be finite numbers")
    if not _spread(values):
        return [0.0] * len(values)
    # Scaled to [-1, 1] first: squares of very large or small values leave a float's range.
    scale = max(map(abs, values))
    scaled = [value / scale for value in values]
    mean = math.fsum(scaled) / len(scaled)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in scaled) / len(scaled))
    return [(value - mean) / std for value in scaled]


def _spread(values: Sequence[float]) -> bool:
    """Whether values differ by more than rounding, which normalizing would blow up to std 1."""
    return bool(values) and not math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean with its 95% bootstrap percentile interval.

    `differences` are paired, one a prompt; whole prompts are resampled, with a fixed seed, so
    the same input gives the same answer. One difference is its own interval; none give zeros,
    so read the result beside the count.
    """
    n = len(differences)
    if n == 0:
        return 0.0, 0.0, 0.0
    mean = math.fsum(differences) / n
    if n == 1:
        return mean, mean, mean
    rng = random.Random(SEED)
    values = [value - mean for value in differences]
    # Centred first, so that equal differences give an interval of exactly one point.
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(RESAMPLES))
    tail = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    return mean, mean + means[tail], mean + means[-1 - tail]
