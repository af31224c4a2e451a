"""Counts of pairwise wins -> one score a response. Pure arithmetic, no dependency."""

import math
from collections.abc import Sequence

PRIOR = 0.1
MIN_PRIOR, MAX_WINS = 1e-3, 1e6
"""Between these the scores are right to a millionth."""
PRECISION = 1e-9
STEPS = 1000
"""A guard only: eight responses take five to ten."""

Matrix = Sequence[Sequence[float]]


def elo(wins: Matrix, prior: float = PRIOR) -> list[float]:
    """The most probable Elo scores, in natural-log units and of mean zero.

    `wins[m][n]` says how often m beat n, fractions allowed. The scores are

        argmax_e  sum_{m,n} wins[m][n] * log(exp(e_m - e_n) / (1 + exp(e_m - e_n)))
                  - prior / 2 * sum_m e_m ** 2

    The first line is that of Wu et al., arXiv 2410.10630, section 2 (the Bradley-Terry model).
    The second is a normal prior of variance 1 / prior on each score (Leonard, "An alternative
    Bayesian approach to the Bradley-Terry model for paired comparisons", Biometrics 33, 1977).
    It makes the answer unique and finite whoever was compared: a response that won everything
    gets a large score, one that was never compared gets 0, and so does the mean of each group
    that was compared with no other. One more win never lowers the winner or lifts the loser.

    Raises ValueError where `wins` isn't square or a number is out of bounds.
    """
    if any(len(row) != len(wins) for row in wins):
        raise ValueError("wins must be a square matrix")
    if not all(0 <= won <= MAX_WINS for row in wins for won in row):
        raise ValueError(f"wins must be from 0 to {MAX_WINS:g}")
    if not (math.isfinite(prior) and prior >= MIN_PRIOR):
        raise ValueError(f"the prior must be at least {MIN_PRIOR:g}")
    if not wins:
        return []
    scores = [0.0] * len(wins)
    for _ in range(STEPS):
        step = _solve(*_derivatives(wins, scores, prior))
        reach = max(step) - min(step)
        # Newton's method, its step shortened just so much that it can't pass the maximum along
        # its line: by a step t the curvature there grows by no more than exp(reach * t).
        size = math.log1p(reach) / reach if reach > PRECISION else 1.0
        scores = [score + size * change for score, change in zip(scores, step, strict=True)]
        if max(map(abs, step)) < PRECISION:
            break
    return scores


def _derivatives(
    wins: Matrix, scores: list[float], prior: float
) -> tuple[list[list[float]], list[float]]:
    """Minus the matrix of second derivatives, which is positive definite, and the gradient."""
    count = len(scores)
    gradient = [-prior * e for e in scores]
    curvature = [[prior if m == n else 0.0 for n in range(count)] for m in range(count)]
    for m in range(count):
        for n in range(m):
            played = wins[m][n] + wins[n][m]
            if not played:
                continue
            win, loss = _sigmoid(scores[m] - scores[n]), _sigmoid(scores[n] - scores[m])
            surprise = wins[m][n] * loss - wins[n][m] * win
            weight = played * win * loss
            gradient[m] += surprise
            gradient[n] -= surprise
            curvature[m][m] += weight
            curvature[n][n] += weight
            curvature[m][n] -= weight
            curvature[n][m] -= weight
    return curvature, gradient


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """x with `matrix @ x = vector`, by elimination; diagonally dominant, so it needs no pivots."""
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    for i, pivot in enumerate(rows):
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            if factor:
                for j in range(i, len(row)):
                    row[j] -= factor * pivot[j]
    solution = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, len(rows)))
        solution[i] = (rows[i][-1] - known) / rows[i][i]
    return solution


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))
