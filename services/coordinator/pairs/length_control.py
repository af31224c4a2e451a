"""Length control of judge scores, and the interval of a mean difference. Pure arithmetic."""

import math
import random
from collections.abc import Sequence

from shared.thinking.scores import normalized

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
    normal_scores, normal_lengths = normalized(scores), normalized(lengths)
    return [s - rho * n for s, n in zip(normal_scores, normal_lengths, strict=True)]


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
