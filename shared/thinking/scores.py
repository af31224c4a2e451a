"""Standard scores: what makes the scores of one prompt's responses comparable. Pure arithmetic."""

import math
from collections.abc import Sequence


def normalized(values: Sequence[float]) -> list[float]:
    """`(v - mean) / std` with the population's std; all zeros where there is no spread.

    Raises ValueError where a value is NaN or infinite.
    """
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
    """Tell if values differ by more than rounding, which normalizing would blow up to std 1."""
    return bool(values) and not math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)
