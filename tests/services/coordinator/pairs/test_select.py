import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.pairs.length_control import length_controlled
from services.coordinator.pairs.select import (
    Candidate,
    ChosenPair,
    DropReason,
    cap_parse_failures,
    choose,
    choose_all,
)

RHO = 0.25


def candidate(id_: int, score: float | None, length: int, output: str | None = None) -> Candidate:
    """With an output of its own, unless it is given one."""
    return Candidate(id_, score, length, output or str(id_))


grades_st = st.none() | st.sampled_from([0.0, 1 / 3, 0.5, 2 / 3, 1.0])
candidates_st = st.lists(st.tuples(grades_st, st.integers(0, 200)), max_size=8).map(
    lambda drawn: [candidate(i, score, length) for i, (score, length) in enumerate(drawn)]
)
fraction_st = st.sampled_from([0.0, 0.05, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.99, 1.0])


def of(*scores: float | None, length: int = 20) -> list[Candidate]:
    return [candidate(i, score, length) for i, score in enumerate(scores)]


def ids(choice: ChosenPair | DropReason) -> tuple[int, int]:
    assert isinstance(choice, ChosenPair)
    return choice.chosen.completion_id, choice.rejected.completion_id


def test_best_against_worst() -> None:
    assert ids(choose(7, of(0.5, 1.0, 0.0, 0.5), RHO)) == (1, 2)


def test_length_decides_between_equal_scores() -> None:
    choice = choose(7, [candidate(0, 1.0, 90), candidate(1, 1.0, 10), candidate(2, 0.0, 50)], RHO)
    assert ids(choice) == (1, 2)


def test_margin_is_of_the_controlled_scores() -> None:
    choice = choose(7, [candidate(0, 1.0, 10), candidate(1, 0.0, 30)], RHO)
    assert isinstance(choice, ChosenPair)
    assert choice.margin == pytest.approx(2 + 2 * RHO)


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], DropReason.no_parsed_response),
        (of(None, None), DropReason.no_parsed_response),
        (of(0.1 + 0.2, 0.3, 0.3), DropReason.tie),
        (of(1.0), DropReason.single_response),
    ],
)
def test_dropped(candidates: list[Candidate], reason: DropReason) -> None:
    assert choose(7, candidates, RHO) is reason


@pytest.mark.parametrize(
    ("candidates", "pair"),
    [
        (of(None, 0.5), (1, 0)),
        (of(0.5, None, 0.5, None), (0, 1)),
        (of(0.5, None, 1.0), (2, 0)),  # a pair of its own: the unparsed output is not used
    ],
)
def test_unparsed_output_is_rejected_only_where_no_parsed_one_can_be(
    candidates: list[Candidate], pair: tuple[int, int]
) -> None:
    choice = choose(7, candidates, RHO)
    assert ids(choice) == pair
    assert isinstance(choice, ChosenPair)
    assert choice.parse_failure == (choice.margin is None)


def test_equal_outputs_are_never_paired() -> None:
    same = [candidate(0, 1.0, 10, "a"), candidate(1, 1.0, 30, "a")]
    assert choose(7, same, RHO) is DropReason.same_output
    assert ids(choose(7, [*same, candidate(2, 1.0, 20)], RHO)) == (0, 2)
    assert choose(7, [*same, candidate(2, 1.0, 10)], RHO) is DropReason.tie
    assert ids(choose(7, [*same, candidate(2, None, 10)], RHO)) == (0, 2)


@given(candidates_st, st.floats(0, 0.5), st.randoms(use_true_random=False))
def test_choice_is_extreme_and_ignores_order(
    candidates: list[Candidate], rho: float, rng: random.Random
) -> None:
    choice = choose(7, candidates, rho)
    assert choose(7, rng.sample(candidates, len(candidates)), rho) == choice
    if isinstance(choice, DropReason):
        return
    parsed = [(c, c.score) for c in candidates if c.score is not None]
    values = length_controlled([score for _, score in parsed], [c.length for c, _ in parsed], rho)
    by_id = {c.completion_id: v for (c, _), v in zip(parsed, values, strict=True)}
    assert choice.chosen.score is not None
    assert by_id[choice.chosen.completion_id] == pytest.approx(max(values), abs=1e-9)
    if choice.margin is not None:
        assert by_id[choice.rejected.completion_id] == pytest.approx(min(values), abs=1e-9)
        assert choice.margin == pytest.approx(max(values) - min(values))
        assert choice.margin > 0


@given(candidates_st)
def test_without_length_control_the_judge_prefers_chosen(candidates: list[Candidate]) -> None:
    choice = choose(7, candidates, 0.0)
    if isinstance(choice, ChosenPair) and not choice.parse_failure:
        assert choice.chosen.score is not None
        assert choice.rejected.score is not None
        assert choice.chosen.score > choice.rejected.score


def choices_of(failures: list[bool]) -> list[ChosenPair]:
    good = candidate(1, 1.0, 10)
    rejected = {True: candidate(2, None, 0), False: candidate(3, 0.0, 10)}
    return [ChosenPair(i, good, rejected[f], None if f else 1.0) for i, f in enumerate(failures)]


@given(st.lists(st.booleans(), max_size=60), fraction_st)
def test_cap_is_exact_and_as_wide_as_it_may_be(failures: list[bool], fraction: float) -> None:
    choices = choices_of(failures)
    kept, dropped = cap_parse_failures(choices, fraction)
    failed = sum(choice.parse_failure for choice in kept)
    share = Fraction(str(fraction))
    assert failed <= share * len(kept)
    assert sorted(kept + dropped, key=lambda c: c.prompt_id) == choices
    assert all(choice.parse_failure for choice in dropped)
    if dropped:
        assert failed + 1 > share * (len(kept) + 1)
        last_kept = max((c.prompt_id for c in kept if c.parse_failure), default=-1)
        assert last_kept < dropped[0].prompt_id


@pytest.mark.parametrize(
    ("parsed", "failed", "fraction", "admitted"),
    [
        (9, 5, 0.1, 1),
        (8, 5, 0.1, 0),
        (90, 50, 0.1, 10),
        (7, 9, 0.3, 3),
        (0, 4, 0.1, 0),
        (0, 4, 1.0, 4),
        (5, 4, 0.0, 0),
    ],
)
def test_cap_by_hand(parsed: int, failed: int, fraction: float, admitted: int) -> None:
    kept, _ = cap_parse_failures(choices_of([True] * failed + [False] * parsed), fraction)
    assert len(kept) == parsed + admitted


@given(st.lists(candidates_st, max_size=30), fraction_st)
def test_every_prompt_is_accounted_for(prompts: list[list[Candidate]], fraction: float) -> None:
    choices, report = choose_all(
        ((i, candidates) for i, candidates in enumerate(prompts)),
        rho=RHO,
        max_parse_failure_fraction=fraction,
    )
    assert report.prompts == len(prompts)
    assert report.kept == len(choices)
    assert report.kept + sum(report.dropped.values()) == report.prompts
    assert report.parse_failure == sum(choice.parse_failure for choice in choices)
    assert report.by_length_alone <= report.kept - report.parse_failure
    assert [c.prompt_id for c in choices] == sorted(c.prompt_id for c in choices)


def test_report() -> None:
    prompts = [
        (1, [candidate(1, 1.0, 10), candidate(2, 0.0, 30)]),
        (2, [candidate(3, 0.5, 20), candidate(4, 0.5, 40)]),
        (3, of(None, None)),
        (4, of(1.0, None)),
    ]
    _, report = choose_all(iter(prompts), rho=RHO, max_parse_failure_fraction=0.1)
    assert report.as_json() == {
        "prompts": 4,
        "kept": 2,
        "parse_failure": 0,
        "by_length_alone": 1,
        "dropped": {"no_parsed_response": 1, "parse_failure_cap": 1},
        "chosen_length": 15.0,
        "rejected_length": 35.0,
    }
