"""How often one model's responses beat another's, raw and length-controlled. Pure arithmetic."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.coordinator.pairs.length_control import CONFIDENCE, SEED, interval

RESAMPLES = 500
"""Of the length-controlled rate, where each is a fit of its own."""
RIDGE = 0.1
"""Weight of the penalty on both parameters: it keeps them finite where one model wins everything,
and counts for less the more prompts there are."""
MIN_WORTH = 20.0
"""Of `worth`. In simulations the ridge moves rates from there on by 0.03 at most; below, it decides
them more and more, and they seem the surer for it."""
INSEPARABLE = (
    "No length-controlled rate where one model's responses are nearly always the longer ones, or "
    "prompts are few: the effect of length cannot be told from who is better."
)
STEPS, TOLERANCE = 50, 1e-9


@dataclass(frozen=True, slots=True)
class Sample:
    """A model's output on a prompt."""

    score: float | None
    """None where it has no response: it loses against any response and ties with another such."""
    length: int | None
    """Tokens of the response; None where it has none."""


Samples = Mapping[int, Sequence[Sample]]
"""Prompt id -> its samples."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Two models on one prompt."""

    share: float
    """Of pairs of samples that the first model wins; a tie is half."""
    longer: float
    """Mean tokens by which its responses are longer. Outputs without a response are left out:
    length had no say in how those ended."""


def duels(model: Samples, other: Samples) -> list[Duel]:
    """On the prompts that both answered: every sample of one against every sample of the other."""
    return [
        Duel(
            _mean([_win(a, b) for a in model[p] for b in other[p]]),
            _longer(model[p], other[p]),
        )
        for p in sorted(model.keys() & other.keys())
        if model[p] and other[p]
    ]


def duels_by_share(model: Samples, other: Samples) -> list[Duel]:
    """The same where a score already is the share of the other's outputs that it beats."""
    return [
        Duel(_mean([s.score or 0.0 for s in model[p]]), _longer(model[p], other.get(p, ())))
        for p in sorted(model)
        if model[p]
    ]


def _win(a: Sample, b: Sample) -> float:
    if a.score is None or b.score is None:
        return ((a.score is not None) - (b.score is not None) + 1) / 2
    return (a.score > b.score) + (a.score == b.score) / 2


def _longer(ours: Sequence[Sample], theirs: Sequence[Sample]) -> float:
    return _mean(
        [
            a.length - b.length
            for a in ours
            for b in theirs
            if a.length is not None and b.length is not None
        ]
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def win_rate(fought: Sequence[Duel]) -> dict[str, Any] | None:
    """Raw and length-controlled rate, each with its 95% interval over prompts; None of nothing.

    The length-controlled one is None, and `note` says why, where `worth` is below `MIN_WORTH`.
    """
    if not fought:
        return None
    shares = [duel.share for duel in fought]
    lengths = length_terms([duel.longer for duel in fought])
    told = worth(lengths) >= MIN_WORTH
    n = len(fought)
    return {
        "raw": _figure(interval(shares), n),
        "length_controlled": _figure(_controlled(shares, lengths), n) if told else None,
        "note": None if told else INSEPARABLE,
    }


def _figure(found: tuple[float, float, float], n: int) -> dict[str, Any]:
    return dict(zip(("mean", "low", "high"), found, strict=True)) | {"n": n}


def worth(lengths: Sequence[float]) -> float:
    """How many prompts without any difference in length would say as much of theta as these do.

    n * var(x) / mean(x^2) of the length terms x: n over the factor by which fitting phi, too,
    inflates theta's variance. It is n where neither model's responses are the longer ones on
    average, and 0 where x is one value: the prompts then show theta + phi * x alone, which the
    ridge would share out between the two whatever the truth is.
    """
    mean, square = _mean(lengths), _mean([x * x for x in lengths])
    return len(lengths) * max(1 - mean * mean / square, 0.0) if square else float(len(lengths))


def _controlled(shares: Sequence[float], lengths: Sequence[float]) -> tuple[float, float, float]:
    """(rate, low, high): the rate with both models' responses as long as each other.

    A logistic regression P(win) = sigmoid(theta + phi * tanh(d / std(d))), d the difference of
    the lengths; the rate is sigmoid(theta), its length term set to zero. A share that is no whole
    win is a target between 0 and 1. Source: Dubois et al., arXiv 2404.04475, section 3; what is
    left out of it is in `docs/reports.md`. The interval resamples prompts, with a fixed seed.
    """
    n = len(shares)
    whole = fit(shares, lengths, [1] * n)
    rng = random.Random(SEED)
    everything = range(n)
    rates = []
    for _ in range(RESAMPLES):
        counts = [0] * n
        for i in rng.choices(everything, k=n):
            counts[i] += 1
        # From the fit to all of them it is a few steps to that to a resample.
        rates.append(_sigmoid(fit(shares, lengths, counts, whole)[0]))
    rates.sort()
    rate = _sigmoid(whole[0])
    tail = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    # Percentiles of a few prompts may lie beside the estimate, which the ridge pulls in.
    return rate, min(rate, rates[tail]), max(rate, rates[-1 - tail])


def length_terms(longer: Sequence[float]) -> list[float]:
    """tanh(d / std(d)); its limit, the sign of d, where d is the same everywhere."""
    mean = _mean(longer)
    std = math.sqrt(_mean([(d - mean) ** 2 for d in longer]))
    if std <= 1e-9:
        return [float((d > 0) - (d < 0)) for d in longer]
    return [math.tanh(d / std) for d in longer]


def fit(
    shares: Sequence[float],
    lengths: Sequence[float],
    counts: Sequence[int],
    start: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """(theta, phi) of greatest penalised likelihood, each row taken `counts` times.

    Newton's method, halving a step that does not bring the gradient nearer to zero: the penalised
    likelihood is strictly concave, so there is always one that does.
    """
    rows = [(c, y, x) for c, y, x in zip(counts, shares, lengths, strict=True) if c]
    theta, phi = start
    slope = _slope(rows, theta, phi)
    for _ in range(STEPS):
        size = math.hypot(slope[0], slope[1])
        if size <= TOLERANCE * (1 + len(rows)):
            break
        g_theta, g_phi, h_tt, h_tp, h_pp = slope
        det = h_tt * h_pp - h_tp * h_tp
        step_theta = (h_pp * g_theta - h_tp * g_phi) / det
        step_phi = (h_tt * g_phi - h_tp * g_theta) / det
        scale = 1.0
        while scale > 1e-6:
            tried = theta + scale * step_theta, phi + scale * step_phi
            found = _slope(rows, *tried)
            if math.hypot(found[0], found[1]) < size:
                break
            scale /= 2
        else:
            break
        (theta, phi), slope = tried, found
    return theta, phi


def _slope(
    rows: Sequence[tuple[int, float, float]], theta: float, phi: float
) -> tuple[float, float, float, float, float]:
    """The gradient, and the negative of the Hessian, which is positive definite by the ridge."""
    g_theta, g_phi = -RIDGE * theta, -RIDGE * phi
    h_tt, h_tp, h_pp = RIDGE, 0.0, RIDGE
    for count, share, x in rows:
        p = _sigmoid(theta + phi * x)
        error, weight = count * (share - p), count * p * (1 - p)
        g_theta += error
        g_phi += error * x
        h_tt += weight
        h_tp += weight * x
        h_pp += weight * x * x
    return g_theta, g_phi, h_tt, h_tp, h_pp


def _sigmoid(z: float) -> float:
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    e = math.exp(z)
    return e / (1 + e)
