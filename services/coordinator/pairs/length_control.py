"""Length control of judge scores. Pure arithmetic."""

from collections.abc import Sequence

from shared.thinking.scores import normalized


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
