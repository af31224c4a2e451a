import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.judge.llm.simulate import JUDGES, Setting, figures, sampled, spearman
from workers.judge.llm.comparisons import Comparison, agreement, all_pairs, calls, next_round, wins
from workers.judge.llm.verdicts import Verdict

plan_st = st.integers(2, 10).flatmap(
    lambda k: st.tuples(st.just(k), st.integers(k, k * (k - 1)), st.integers(0, 2**32))
)


def judged(responses: int, seed: int) -> dict[Comparison, Verdict]:
    """Any verdict about any two: no judge need be sensible."""
    rng = random.Random(seed)
    return {pair: rng.choice(list(Verdict)) for pair in all_pairs(responses)}


def joined(responses: int, pairs: list[Comparison]) -> bool:
    reached = {0}
    for _ in range(responses):
        reached |= {n for pair in pairs if reached & set(pair) for n in pair}
    return len(reached) == responses


def test_orders_agree_where_the_position_has_no_say() -> None:
    fair = {p: Verdict.first if p.first < p.second else Verdict.second for p in all_pairs(4)}
    assert agreement(fair) == {"orders_agree": 6, "orders_differ": 0}
    assert agreement(dict.fromkeys(fair, Verdict.tie)) == {"orders_agree": 6, "orders_differ": 0}
    assert agreement(dict.fromkeys(fair, Verdict.first)) == {"orders_agree": 0, "orders_differ": 6}


@given(plan_st)
def test_only_pairs_with_two_readable_verdicts_can_agree(plan: tuple[int, int, int]) -> None:
    responses, budget, seed = plan
    answers = sampled(judged(responses, seed), responses, budget, seed)
    readable = {pair for pair, verdict in answers.items() if verdict is not Verdict.unreadable}
    both = {frozenset(p) for p in readable if Comparison(p.second, p.first) in readable}
    assert sum(agreement(answers).values()) == len(both)


def test_a_third_of_the_calls_in_three_rounds() -> None:
    answers: dict[Comparison, Verdict] = {}
    sizes = []
    while batch := next_round(8, calls(8, 1 / 3), 7, answers):
        sizes.append(len(batch))
        answers |= dict.fromkeys(batch, Verdict.first)
    assert sizes == [8, 5, 5]


@given(plan_st)
def test_spends_its_budget_on_different_comparisons(plan: tuple[int, int, int]) -> None:
    responses, budget, seed = plan
    answers = sampled(judged(responses, seed), responses, budget, seed)
    assert len(answers) == budget
    assert set(answers) <= set(all_pairs(responses))
    unordered = Counter(frozenset(pair) for pair in answers)
    assert max(unordered.values()) == 1 or len(unordered) == responses * (responses - 1) // 2


@given(plan_st)
def test_first_round_is_a_ring(plan: tuple[int, int, int]) -> None:
    responses, budget, seed = plan
    batch = next_round(responses, budget, seed, {})
    assert joined(responses, batch)
    shown_first = Counter(pair.first for pair in batch)
    assert shown_first == Counter(pair.second for pair in batch)
    assert set(shown_first) == set(range(responses))


def test_each_is_shown_first_about_as_often_as_second() -> None:
    leads = Counter[int]()
    for seed in range(300):
        lead = [0] * 8
        for first, second in sampled(judged(8, seed), 8, 18, seed):
            lead[first] += 1
            lead[second] -= 1
        leads.update(map(abs, lead))
    assert max(leads) <= 3
    assert (leads[0] + leads[1]) / leads.total() > 0.9


@given(plan_st, st.randoms(use_true_random=False))
def test_goes_on_from_any_answers_it_is_given(
    plan: tuple[int, int, int], rng: random.Random
) -> None:
    """Killed between any two answers, and with them read back in any order."""
    responses, budget, seed = plan
    verdicts = judged(responses, seed)
    answers: dict[Comparison, Verdict] = {}
    while batch := next_round(responses, budget, seed, answers):
        kept = rng.sample(batch, rng.randint(1, len(batch)))
        shuffled = [*answers.items(), *((pair, verdicts[pair]) for pair in kept)]
        rng.shuffle(shuffled)
        answers = dict(shuffled)
    assert answers == sampled(verdicts, responses, budget, seed)


def test_later_rounds_compare_neighbours() -> None:
    clean = {
        pair: Verdict.first if pair.first < pair.second else Verdict.second for pair in all_pairs(8)
    }
    distance = [0, 0]
    for seed in range(50):
        ring = next_round(8, 18, seed, {})
        for m, n in sampled(clean, 8, 18, seed):
            distance[(m, n) in ring] += abs(m - n)
    assert distance[False] / 10 < 0.8 * distance[True] / 8


def test_all_pairs_are_one_round() -> None:
    assert next_round(8, 56, 7, {}) == all_pairs(8)
    assert next_round(8, 99, 7, dict.fromkeys(all_pairs(8), Verdict.tie)) == []


def test_nothing_to_compare() -> None:
    assert next_round(0, 0, 7, {}) == next_round(1, 5, 7, {}) == []


def test_budget_without_room_for_the_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="8 responses need 8 comparisons, not 7"):
        next_round(8, 7, 1, {})


@pytest.mark.parametrize(
    ("responses", "share", "expected"),
    [(8, 1 / 3, 18), (8, 1, 56), (8, 0, 8), (16, 1 / 3, 80), (2, 0.1, 2), (1, 1, 0), (0, 1, 0)],
)
def test_calls(responses: int, share: float, expected: int) -> None:
    assert calls(responses, share) == expected


def test_wins_are_counted_in_both_orders() -> None:
    answers = {
        Comparison(0, 1): Verdict.first,
        Comparison(1, 0): Verdict.second,
        Comparison(2, 0): Verdict.first,
        Comparison(1, 2): Verdict.tie,
        Comparison(2, 1): Verdict.unreadable,
    }
    assert wins(3, answers) == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(0.894, abs=1e-3)
    assert spearman([1, 1], [1, 2]) == 0


@pytest.mark.parametrize(("judge", "least"), [("good", 0.9), ("strong", 0.93)])
def test_a_third_of_the_calls_keeps_the_ranking(judge: str, least: float) -> None:
    """Judges that agree with themselves, the order swapped, in 80% and 86% of the pairs."""
    row = figures(JUDGES[judge])
    assert row.calls == 18
    assert row.spearman >= least
    assert min(row.best, row.worst) >= 0.75
    assert row.both > figures(JUDGES[judge], Setting(blind=True)).both


def test_a_noisier_judge_needs_half_of_the_calls() -> None:
    """It agrees with itself in 74%: two of its kind, each asked all pairs, don't reach 0.9."""
    third = figures(JUDGES["fair"])
    assert 0.9 > third.spearman > figures(JUDGES["fair"], Setting(share=1, anew=True)).spearman
    assert figures(JUDGES["fair"], Setting(share=1 / 2)).spearman >= 0.9
