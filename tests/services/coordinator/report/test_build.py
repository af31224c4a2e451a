"""What an iteration's report says of rows that are known."""

from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from services.coordinator.evaluation.stats import mean_interval
from services.coordinator.evaluation.winrate import INSEPARABLE
from services.coordinator.report.build import build_report
from services.coordinator.report.validation import MAX_CATEGORIES
from shared.db.tables import Iteration, Job, Model, Prompt, Split
from tests.support import factories
from tests.support.evaluated_runs import BROKEN, Out, compared, evaluated, running, trained

SECRET = "SECRET"
TRAINING = [
    [Out(1.0, 20), Out(0.0, 10), BROKEN],
    [Out(0.5, 30), Out(0.5, 30, text="same"), Out(0.5, 30, text="same")],
    [Out(None, 40, reason="not_finite"), Out(None, 40), Out(1.0, 10, text=SECRET)],
]
SEED = [[Out(0.0, 10)], [Out(1.0, 10)], [Out(1.0, 10)], [BROKEN]]
CHOSEN = [[Out(1.0, 30)], [Out(1.0, 20)], [Out(0.0, 10)], [Out(0.0, 40)]]
PAIRWISE = {"kind": "pairwise", "model": "judge"}
VERIFIER = {"kind": "verifier"}


def mixture(*judges: Any) -> Any:
    return {"kind": "mixture", "judges": [{"judge": judge} for judge in judges]}


def report_of(session: Session, chosen: Any = CHOSEN, seed: Any = SEED, **given: Any) -> Any:
    model = factories.model(session)
    categories = given.pop("categories", ("sums", "sums", "rhymes", None))
    dataset = factories.dataset(session, train=len(TRAINING), validation=len(chosen))
    held_out = select(Prompt).where(Prompt.split == Split.validation).order_by(Prompt.position)
    for prompt, category in zip(session.scalars(held_out), categories, strict=True):
        prompt.category = category
    iteration = running(session, dataset, model, **given)
    checkpoint = trained(session, iteration, TRAINING)
    evaluated(session, iteration, model.id, seed)
    evaluated(session, iteration, checkpoint.id, chosen)
    return build_report(session, iteration, checkpoint.id)


def test_win_rates_count_a_response_above_none(session: Session) -> None:
    found = report_of(session)["validation"]
    rates = found["win_rate"]
    # A win, a tie, a loss, and a response where the seed gave none: no better by its mean score.
    assert rates["seed"]["raw"]["mean"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert rates["parent"] == rates["seed"], "the parent is the seed"
    assert rates["gain_in_share_over_parent"] is None
    assert found["vs_seed"]["mean"] == 0
    assert found["score_interval"]["mean"] == found["score"] == 0.5
    assert found["score_interval"]["low"] < 0.5 < found["score_interval"]["high"]


def test_shares_of_a_comparing_judge_are_the_win_rate_against_the_seed(session: Session) -> None:
    chosen = [[Out(0.75)], [Out(1.0)], [BROKEN]]
    seed = [[Out(0.5)], [Out(0.5)], [Out(0.5)]]
    report = report_of(
        session, chosen, seed, config={"judge": PAIRWISE}, categories=(None, None, None)
    )
    rates = report["validation"]["win_rate"]
    assert rates["seed"]["raw"]["mean"] == pytest.approx((0.75 + 1.0 + 0) / 3)
    assert rates["parent"] == rates["seed"], "the parent is the seed"
    assert rates["gain_in_share_over_parent"]["mean"] == pytest.approx((0.25 + 0.5 - 0.5) / 3)


def test_versions_are_those_of_validation(session: Session) -> None:
    report_of(session)
    for job in session.scalars(select(Job)):
        job.result = (job.result or {}) | {"versions": {str(job.step).partition(":")[0]: "1"}}
    iteration = session.scalars(select(Iteration)).one()
    chosen = session.scalars(select(Model.id).where(Model.epoch == 1)).one()
    found = build_report(session, iteration, chosen)["validation"]["versions"]
    assert found == {"evaluate-generate": "1", "evaluate-judge": "1"}


def test_a_seed_that_was_not_judged_leaves_its_figures_out(session: Session) -> None:
    report = report_of(session, seed=[[Out(None, reason="unreadable")]] * 4)
    found = report["validation"]
    assert found["score"] == 0.5
    assert found["seed_score"] is found["seed_interval"] is found["win_rate"]["seed"] is None
    assert found["vs_seed"]["n"] == 0
    assert report["categories"][0]["seed_score"] is None


def test_categories_are_scored_apart(session: Session) -> None:
    report = report_of(session)
    assert [
        (c["category"], c["prompts"], c["score"], c["seed_score"]) for c in report["categories"]
    ] == [
        ("sums", 2, 1.0, 0.5),
        ("rhymes", 1, 0.0, 1.0),
    ]
    sums, rhymes = report["categories"]
    assert sums["vs_seed"]["mean"] == 0.5
    assert sums["win_rate"]["seed"]["raw"] == {"mean": 0.75, "low": 0.5, "high": 1.0, "n": 2}
    assert rhymes["win_rate"]["seed"]["raw"]["mean"] == 0
    assert report["categories_left_out"] == 0


def test_a_category_has_the_share_that_a_comparing_judge_gave(session: Session) -> None:
    chosen, seed = [[Out(0.75)], [BROKEN], [Out(1.0)]], [[Out(0.5)]] * 3
    config = {"judge": PAIRWISE}
    report = report_of(session, chosen, seed, config=config, categories=("a", "a", "b"))
    rates = {c["category"]: c["win_rate"]["seed"]["raw"] for c in report["categories"]}
    assert rates["a"] == {"mean": 0.375, "low": 0.0, "high": 0.75, "n": 2}
    assert rates["b"]["mean"] == 1


def test_length_is_controlled_in_categories_of_enough_prompts(session: Session) -> None:
    """In the large one four longer responses in five win, whoever's they are."""
    chosen, seed = [], []
    for i in range(60):
        longer, surprise = i % 4 < 3, i // 4 % 5 == 0
        chosen.append([Out(float(longer != surprise), 30 if longer else 10)])
        seed.append([Out(0.5, 20)])
    names = ["large"] * 55 + ["small"] * 5
    large, small = report_of(session, chosen, seed, categories=names)["categories"]
    rates = large["win_rate"]["seed"]
    assert rates["raw"]["mean"] > 0.6
    assert rates["length_controlled"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert small["win_rate"]["seed"]["raw"]["n"] == 5
    assert small["win_rate"]["seed"]["length_controlled"] is None
    assert small["win_rate"]["seed"]["note"] == INSEPARABLE


def test_no_more_categories_than_can_be_read(session: Session) -> None:
    n = MAX_CATEGORIES + 3
    outs = [[Out(1.0)]] * n
    report = report_of(session, outs, outs, categories=[f"kind {i}" for i in range(n)])
    assert len(report["categories"]) == MAX_CATEGORIES
    assert report["categories_left_out"] == 3


def test_outputs_are_counted_and_measured(session: Session) -> None:
    found = report_of(session)["outputs"]
    training = found["training"]
    assert (training["completions"], training["parse_failures"], training["truncated"]) == (9, 1, 1)
    assert training["thought_tokens"]["p50"] == 5
    assert training["thought_tokens"]["mean"] == pytest.approx((8 * 5 + 40) / 9)
    # Of the eight responses; an output without one has no length of it.
    assert training["response_tokens"]["mean"] == pytest.approx(210 / 8)
    assert training["response_tokens"]["p50"] == 30
    assert training["response_tokens"]["p90"] == 40
    scores = training["scores"]
    assert (scores["judged"], scores["unjudged"]) == (6, 2)
    assert scores["unjudged_reasons"] == {"not_finite": 1, "not_given": 1}
    assert scores["spread"] == {"prompts": 2, "mean_std": 0.25, "zero_share": 0.5}
    assert training["judge"] == {"unjudged": 2, "calls": 9}
    assert found["seed"]["parse_failures"] == 1
    assert found["validation"]["parse_rate"] == 1
    assert found["validation"]["scores"]["spread"]["zero_share"] is None


def test_other_strengths_of_length_control_are_set_beside_the_one_used(session: Session) -> None:
    found = report_of(session, config={"length_control": {"rho": 0.1}})["length_control"]
    assert found["rho"] == 0.1
    assert [row["rho"] for row in found["sweep"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert found["sweep"][0]["pairs"] == 1


@pytest.mark.parametrize(
    ("config", "same", "warned"),
    [
        ({}, True, False),
        ({"judge": PAIRWISE}, True, True),
        ({"judge": PAIRWISE, "validation": {"judge": PAIRWISE}}, True, True),
        ({"judge": PAIRWISE, "validation": {"judge": PAIRWISE | {"model": "x"}}}, False, False),
        ({"validation": {"judge": PAIRWISE}}, False, False),
        ({"judge": PAIRWISE, "validation": {"judge": PAIRWISE | {"max_tokens": 7}}}, True, True),
        ({"judge": PAIRWISE, "validation": {"judge": mixture(VERIFIER, PAIRWISE)}}, True, True),
        ({"judge": mixture(VERIFIER, VERIFIER), "validation": {"judge": VERIFIER}}, False, False),
    ],
)
def test_a_judge_that_measures_what_it_has_taught_is_named(
    session: Session, config: Any, same: bool, warned: bool
) -> None:
    report = report_of(session, config=config)
    assert report["same_judge"] is same
    assert bool(report["warning"]) is warned


def test_each_models_validation_outputs_are_read_once(session: Session, engine: Engine) -> None:
    statements: list[str] = []

    def record(*args: Any) -> None:
        statements.append(args[2])

    event.listen(engine, "before_cursor_execute", record)
    try:
        report = report_of(session)
    finally:
        event.remove(engine, "before_cursor_execute", record)
    assert report["validation"]["win_rate"]["parent"], "the parent is the seed here"
    last_insert = max(i for i, text in enumerate(statements) if text.startswith("INSERT"))
    selects = statements[last_insert + 1 :]
    reads = [s for s in selects if "response_tokens" in s and "count(" not in s and "md5(" not in s]
    assert len(reads) == 2, f"the chosen model's and the seed's, once each: {reads}"
    assert len(selects) <= 27, f"{len(selects)} statements: {selects}"


def test_no_text_is_in_a_report(session: Session) -> None:
    report = report_of(session)
    assert SECRET not in str(report)
    assert "Prompt 1" not in str(report)


def third_generation(
    session: Session, seed: Any, parent: Any, chosen: Any, shares: Any = None, **given: Any
) -> Any:
    """The win rates of a model whose parent is not the seed, by what they wrote for validation and
    the shares that the model won from the parent."""
    of_seed, of_parent = factories.model(session), factories.model(session, name="parent")
    dataset = factories.dataset(session, train=3, validation=len(chosen))
    columns = {"parent_model_id": of_parent.id, "number": 2}
    iteration: Iteration = running(session, dataset, of_seed, **columns, **given)
    checkpoint = trained(session, iteration, TRAINING)
    evaluated(session, iteration, of_seed.id, seed)
    evaluated(session, iteration, of_parent.id, parent)
    evaluated(session, iteration, checkpoint.id, chosen)
    if shares is not None:
        compared(session, iteration, checkpoint.id, shares)
    return build_report(session, iteration, checkpoint.id)["validation"]["win_rate"]


def test_a_parent_of_its_own_is_compared_with(session: Session) -> None:
    seed, parent, chosen = [[Out(0.0)]] * 2, [[Out(2.0)], [Out(0.0)]], [[Out(1.0)]] * 2
    rates = third_generation(session, seed, parent, chosen)
    assert rates["seed"]["raw"]["mean"] == 1
    assert rates["parent"]["raw"]["mean"] == 0.5


def test_what_a_comparing_judge_said_of_model_and_parent_is_their_win_rate(
    session: Session,
) -> None:
    times = 5  # as many prompts as a length-controlled rate takes
    seed = [[Out(0.5)]] * 5 * times
    parent = [[Out(1.0)], [Out(1.0)], [BROKEN], [BROKEN], [Out(1.0)]] * times
    chosen = [[Out(0.5)], [Out(0.0)], [Out(1.0)], [BROKEN], [BROKEN]] * times
    shares = [1.0, 0.25, None, None, None] * times
    rates = third_generation(session, seed, parent, chosen, shares, config={"judge": PAIRWISE})
    # By its comparison, by its comparison, none but its own, none at all, none but the parent's.
    won = [1.0, 0.25, 1.0, 0.5, 0.0] * times
    assert rates["parent"]["raw"] == mean_interval(won).as_json()
    assert rates["parent"]["raw"]["mean"] == pytest.approx(0.55)
    # Responses are as long as each other.
    assert rates["parent"]["length_controlled"]["mean"] == pytest.approx(0.55, abs=0.01)
    assert rates["seed"]["raw"]["mean"] == pytest.approx((0.5 + 0.0 + 1.0 + 0 + 0) / 5)
    gain = rates["gain_in_share_over_parent"]["mean"]
    assert gain == pytest.approx((-0.5 - 1.0 + 1.0 + 0 - 1.0) / 5)
