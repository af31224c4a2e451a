"""Win rates: how often one model's responses beat another's, raw and length-controlled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from services.coordinator.evaluation.scored_outputs import ScoredOutput, ScoredOutputs
from services.coordinator.evaluation.stats import (
    Interval,
    Numbers,
    mean_interval,
    percentiles,
    resamples,
)

RESAMPLES = 500
"""Resamples of a length-controlled rate. Each needs a fit, so there are fewer than of a mean."""
RIDGE = 0.1
"""Weight of the penalty on both parameters: it keeps them finite where one model wins everything,
and matters less the more prompts there are."""
MIN_EFFECTIVE_SAMPLE_SIZE = 20.0
"""From here on the ridge moves rates by at most 0.03 in simulations. Below, it decides them more
and more, while the interval gets narrower."""
INSEPARABLE = (
    "No length-controlled rate: one model's responses are nearly always the longer ones, or there "
    "are few prompts, so the effect of length cannot be separated from quality."
)
MAX_STEPS, TOLERANCE, MIN_SCALE = 100, 1e-9, 1e-6


@dataclass(frozen=True, slots=True)
class PromptComparison:
    """Two models on one prompt."""

    share: float
    """Share of the pairs of outputs that the first model wins; a tie counts half."""
    longer: float
    """Mean tokens by which the first model's responses are longer. Outputs without a response are
    left out: length did not decide those."""


def comparisons(model: ScoredOutputs, other: ScoredOutputs) -> list[PromptComparison]:
    """Each output of one model against each of the other, on the prompts that both answered."""
    return [
        PromptComparison(
            fmean(_points(ours, theirs) for ours in model[p] for theirs in other[p]),
            _mean_longer(model[p], other[p]),
        )
        for p in sorted(model.keys() & other.keys())
    ]


def comparisons_by_share(model: ScoredOutputs, other: ScoredOutputs) -> list[PromptComparison]:
    """The same where a score already is the share of the other's outputs that the output beats."""
    return [
        PromptComparison(
            fmean(output.score or 0.0 for output in outputs),
            _mean_longer(outputs, other.get(prompt_id, ())),
        )
        for prompt_id, outputs in sorted(model.items())
    ]


def _points(ours: ScoredOutput, theirs: ScoredOutput) -> float:
    """1 for a win, one half for a tie."""
    a, b = (-math.inf if o.score is None else o.score for o in (ours, theirs))
    return (a > b) + (a == b) / 2


def _mean_longer(ours: Sequence[ScoredOutput], theirs: Sequence[ScoredOutput]) -> float:
    our_lengths, their_lengths = (
        [output.length for output in outputs if output.length is not None]
        for outputs in (ours, theirs)
    )
    if not our_lengths or not their_lengths:
        return 0.0
    return fmean(our_lengths) - fmean(their_lengths)


def win_rate(compared: Sequence[PromptComparison]) -> dict[str, Any] | None:
    """The raw and the length-controlled rate, each with its 95% interval; None without prompts.

    The length-controlled rate is None, and `note` says why, where the effective sample size is
    below `MIN_EFFECTIVE_SAMPLE_SIZE`.
    """
    if not compared:
        return None
    shares = [comparison.share for comparison in compared]
    lengths = length_terms([comparison.longer for comparison in compared])
    separable = effective_sample_size(lengths) >= MIN_EFFECTIVE_SAMPLE_SIZE
    return {
        "raw": mean_interval(shares).as_json(),
        "length_controlled": (
            _length_controlled(np.asarray(shares, dtype=float), lengths).as_json()
            if separable
            else None
        ),
        "note": None if separable else INSEPARABLE,
    }


def effective_sample_size(lengths: Numbers) -> float:
    """The number of prompts without a difference in length that would tell as much about theta.

    It is n * var(x) / mean(x^2) of the length terms x: n over the factor by which fitting phi as
    well inflates the variance of theta. It is n where neither model's responses are longer on
    average, and 0 where all x are equal: the prompts then show only theta + phi * x, and the ridge
    alone would decide how the sum is divided.
    """
    square = float(np.mean(lengths**2))
    return len(lengths) * float(np.var(lengths)) / square if square else float(len(lengths))


def _length_controlled(shares: Numbers, lengths: Numbers) -> Interval:
    """The win rate if the responses of both models were equally long.

    A logistic regression P(win) = sigmoid(theta + phi * tanh(d / std(d))), d the difference of
    the lengths; the rate is sigmoid(theta): the length term is set to zero. A share between 0 and
    1 is a target of its own. Source: Dubois et al., arXiv 2404.04475, section 3; `docs/reports.md`
    says what differs.
    """
    whole = fit(shares[None], lengths[None], np.zeros(2))[0]
    # A fit to a resample is a few steps away from the fit to all prompts.
    fits = [
        fit(shares[rows], lengths[rows], whole)[:, 0] for rows in resamples(len(shares), RESAMPLES)
    ]
    rate = float(_sigmoid(whole[0]))
    low, high = percentiles(_sigmoid(np.concatenate(fits)))
    # Percentiles of few prompts may lie beside the estimate, which the ridge pulls inwards.
    return Interval(rate, min(rate, low), max(rate, high), len(shares))


def length_terms(longer: Sequence[float]) -> Numbers:
    """tanh(d / std(d)), and its limit, the sign of d, where all d are equal."""
    differences = np.asarray(longer, dtype=float)
    std = differences.std()
    terms: Numbers = np.sign(differences) if std <= 1e-9 else np.tanh(differences / std)
    return terms


def fit(shares: Numbers, lengths: Numbers, start: Numbers) -> Numbers:
    """(theta, phi) of greatest penalised likelihood for each row of prompts.

    Newton's method, halving a step that does not make the gradient smaller: the penalised
    likelihood is strictly concave, so a short enough step always does.
    """
    point = np.tile(start, (len(shares), 1))
    scale = np.ones(len(shares))
    gradient, curvature = _derivatives(shares, lengths, point)
    for _ in range(MAX_STEPS):
        size = np.linalg.norm(gradient, axis=1)
        if np.all((size <= TOLERANCE * (1 + shares.shape[1])) | (scale < MIN_SCALE)):
            break
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        tried = point + scale[:, None] * step
        tried_gradient, tried_curvature = _derivatives(shares, lengths, tried)
        smaller = np.linalg.norm(tried_gradient, axis=1) < size
        point[smaller] = tried[smaller]
        gradient[smaller], curvature[smaller] = tried_gradient[smaller], tried_curvature[smaller]
        scale = np.where(smaller, 1.0, scale / 2)
    return point


def _derivatives(shares: Numbers, lengths: Numbers, point: Numbers) -> tuple[Numbers, Numbers]:
    """The gradients, and minus the second derivatives, positive definite thanks to the ridge."""
    chance = _sigmoid(point[:, :1] + point[:, 1:] * lengths)
    error, weight = shares - chance, chance * (1 - chance)
    weighted = weight * lengths
    gradient = np.stack([error.sum(axis=1), (error * lengths).sum(axis=1)], axis=1)
    mixed = weighted.sum(axis=1)
    curvature = np.array([[weight.sum(axis=1), mixed], [mixed, (weighted * lengths).sum(axis=1)]])
    return gradient - RIDGE * point, np.moveaxis(curvature, 2, 0) + RIDGE * np.eye(2)


def _sigmoid(z: Numbers) -> Numbers:
    return 0.5 + 0.5 * np.tanh(z / 2)  # 1 / (1 + exp(-z)) would overflow
