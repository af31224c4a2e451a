"""Counts of pairwise wins -> one score per response. Pure arithmetic."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PRIOR = 0.1
MIN_PRIOR, MAX_WINS = 1e-3, 1e6
"""Between these bounds the scores are right to a millionth."""
PRECISION = 1e-9
MAX_STEPS = 1000
"""A guard only: eight responses take five to ten."""

Matrix = Sequence[Sequence[float]]
Numbers = NDArray[np.float64]


def elo(wins: Matrix, prior: float = PRIOR) -> list[float]:
    """The most probable Elo scores, in natural-log units and with mean zero.

    `wins[m][n]` says how often m beat n, fractions allowed. The scores are

        argmax_e  sum_{m,n} wins[m][n] * log(exp(e_m - e_n) / (1 + exp(e_m - e_n)))
                  - prior / 2 * sum_m e_m ** 2

    The first line is that of Wu et al., arXiv 2410.10630, section 2 (the Bradley-Terry model).
    The second is a normal prior of variance 1 / prior on each score (Leonard, "An alternative
    Bayesian approach to the Bradley-Terry model for paired comparisons", Biometrics 33, 1977).
    It makes the answer unique and finite whatever was compared: a response that won everything
    gets a large score, one that was never compared gets 0, and so does the mean of each group
    that was compared with no other group. One more win never lowers the winner or lifts the loser.

    Raises ValueError where `wins` is not square or a number is out of bounds.
    """
    if any(len(row) != len(wins) for row in wins):
        raise ValueError("wins must be a square matrix")
    if not all(0 <= won <= MAX_WINS for row in wins for won in row):
        raise ValueError(f"wins must be from 0 to {MAX_WINS:g}")
    if not (math.isfinite(prior) and prior >= MIN_PRIOR):
        raise ValueError(f"the prior must be at least {MIN_PRIOR:g}")
    if not wins:
        return []
    won, scores = np.asarray(wins, dtype=float), np.zeros(len(wins))
    for _ in range(MAX_STEPS):
        step = _newton_step(won, scores, prior)
        reach = float(np.ptp(step))
        # Newton's method, its step shortened just enough that it cannot pass the maximum along
        # its line: by a step t the curvature there grows by at most exp(reach * t).
        size = math.log1p(reach) / reach if reach > PRECISION else 1.0
        scores += size * step
        if np.abs(step).max() < PRECISION:
            break
    # The maximum has mean zero exactly: what is left of a mean is rounding, divided by the prior.
    return [float(score) for score in scores - scores.mean()]


def _newton_step(won: Numbers, scores: Numbers, prior: float) -> Numbers:
    """The gradient over minus the second derivatives, a positive definite matrix."""
    # Within the bounds on wins and prior no two scores are so far apart that exp overflows.
    win = 1 / (1 + np.exp(scores[None, :] - scores[:, None]))
    gradient = (won * win.T - won.T * win).sum(axis=1) - prior * scores
    weight = (won + won.T) * win * win.T
    np.fill_diagonal(weight, 0.0)
    return np.linalg.solve(np.diag(prior + weight.sum(axis=1)) - weight, gradient)
