"""Verdicts -> Elo -> length control -> pair, against the formulas of `method` written out again.

The other implementation is batched numpy: Newton's method on the whole Hessian for all cases at
once, standard scores by numpy, and the pair by looking at every two responses.
"""

import random

import numpy as np

from services.coordinator.pairs.select import Candidate, ChosenPair, DropReason, choose
from workers.judge.llm.comparisons import Comparison, wins
from workers.judge.llm.elo import PRIOR, elo
from workers.judge.llm.verdicts import Verdict

CASES = 3000
K = 6
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def slow_elo(counts: Floats) -> Floats:
    """(cases, K, K) wins -> (cases, K) scores: the maximum of the penalised log-likelihood."""
    scores = np.zeros(counts.shape[:2])
    played = counts + counts.transpose(0, 2, 1)
    for _ in range(200):
        p = 1 / (1 + np.exp(scores[:, None, :] - scores[:, :, None]))
        gradient = (counts - played * p).sum(2) - PRIOR * scores
        weight = played * p * (1 - p)
        hessian = weight.sum(2)[:, :, None] * np.eye(K) - weight + PRIOR * np.eye(K)
        scores = scores + 0.5 * np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
    centred: Floats = scores - scores.mean(1, keepdims=True)
    return centred


def slow_pair(scores: Floats, lengths: Floats, rho: float) -> tuple[tuple[int, int], float, bool]:
    """Chosen and rejected, their margin, and whether any other pair comes close."""

    def n(v: Floats) -> Floats:
        return (v - v.mean()) / v.std() if v.std() > 1e-9 else np.zeros_like(v)

    s = n(scores) - rho * n(lengths)
    gaps = sorted(((s[a] - s[b], (a, b)) for a in range(K) for b in range(K)), reverse=True)
    return gaps[0][1], gaps[0][0], gaps[0][0] - gaps[1][0] < 1e-4


def test_on_thousands_of_random_verdicts() -> None:
    rng = random.Random(7)
    sure = [Verdict.first, Verdict.second]
    answers = []
    for _ in range(CASES):
        quality = [rng.gauss(0, 2) for _ in range(K)]
        share = rng.choice([0.3, 0.6, 1.0])
        verdicts = {}
        for m in range(K):
            for k in range(K):
                if m == k or rng.random() > share:
                    continue
                likely = 1 / (1 + np.exp(quality[k] - quality[m]))
                verdict = sure[int(rng.random() > likely)]
                if rng.random() < 0.1:
                    verdict = rng.choice([Verdict.tie, Verdict.unreadable])
                verdicts[Comparison(m, k)] = verdict
        answers.append(verdicts)
    counts = np.zeros((CASES, K, K))
    for case, verdicts in enumerate(answers):
        for (m, k), verdict in verdicts.items():
            counts[case, m, k] += verdict is Verdict.first
            counts[case, k, m] += verdict is Verdict.second
    expected = slow_elo(counts)

    compared = 0
    for case, verdicts in enumerate(answers):
        scores = elo(wins(K, verdicts))
        np.testing.assert_allclose(scores, expected[case], atol=1e-6)
        lengths = [rng.randint(1, 400) for _ in range(K)]
        rho = rng.choice([0.0, 0.1, 0.25, 0.5])
        got = choose(
            case,
            [Candidate(i, scores[i], lengths[i], output=str(i)) for i in range(K)],
            rho,
        )
        pair, margin, is_close = slow_pair(expected[case], np.array(lengths, float), rho)
        if is_close:
            continue
        compared += 1
        assert isinstance(got, ChosenPair), f"case {case}: {got}"
        assert (got.chosen.completion_id, got.rejected.completion_id) == pair, f"case {case}"
        assert got.margin is not None
        assert abs(got.margin - margin) < 1e-4
    assert compared > 0.9 * CASES


def test_a_judge_that_likes_only_a_position_makes_no_pair_of_its_own() -> None:
    always_first = {Comparison(m, k): Verdict.first for m in range(K) for k in range(K) if m != k}
    scores = elo(wins(K, always_first))
    candidates = [Candidate(i, scores[i], 10, output=str(i)) for i in range(K)]
    assert choose(1, candidates, 0.25) is DropReason.tie
