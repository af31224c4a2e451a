"""Thinking beside its direct baseline."""

import uuid
from typing import Any

import pytest
from sqlalchemy.orm import Session

from services.coordinator.report.build import build_report
from services.coordinator.report.versus import OWN_SEEDS
from shared.db.tables import Dataset, Model
from shared.thinking.formats import NONE
from tests.support import factories
from tests.support.evaluated_runs import BROKEN, Out, evaluated, running, succeeded, trained

TRAINING = [[Out(1.0), Out(0.0)]]
SEED = [[Out(0.5)], [Out(0.5)], [Out(0.5)]]
THINKING = [[Out(1.0)], [Out(1.0)], [Out(0.0)]]
DIRECT = [[Out(0.0)], [Out(1.0)], [Out(0.0)]]
COMPARES = {"judge": {"kind": "pairwise", "model": "judge"}}


def ended(
    session: Session, dataset: Dataset, seed: Model, outs: Any, seed_outs: Any, **given: Any
) -> Any:
    """The report of an iteration, once it has succeeded."""
    iteration = running(session, dataset, seed, **given)
    checkpoint = trained(session, iteration, TRAINING)
    evaluated(session, iteration, seed.id, seed_outs)
    evaluated(session, iteration, checkpoint.id, outs)
    report = build_report(session, iteration, checkpoint.id)
    succeeded(session, iteration, checkpoint, report)
    return report


def both(
    session: Session,
    config: Any,
    *,
    thinking_first: bool,
    thinking: Any = THINKING,
    direct: Any = DIRECT,
    thinking_seed: Any = SEED,
    direct_seed: Any = SEED,
) -> list[Any]:
    """Two reports, the later one last."""
    seed, dataset = factories.model(session), factories.dataset(session, train=1, validation=3)
    run_id = uuid.uuid4()
    plain = {"name": "thinker-direct", "thought_format": NONE.model_dump()}
    runs: list[dict[str, Any]] = [
        {"outs": thinking, "seed_outs": thinking_seed, "run_id": run_id, "config": config},
        {
            "outs": direct,
            "seed_outs": direct_seed,
            "baseline_of": run_id,
            "config": config | plain,
        },
    ]
    return [ended(session, dataset, seed, **r) for r in (runs if thinking_first else runs[::-1])]


@pytest.mark.parametrize("thinking_first", [True, False])
def test_the_later_report_has_the_difference_of_thinking(
    session: Session, thinking_first: bool
) -> None:
    earlier, later = both(session, {}, thinking_first=thinking_first)
    assert earlier["thinking_vs_direct"] is None
    found = later["thinking_vs_direct"]
    assert (found["measure"], found["note"]) == ("score", None)
    assert found["difference"]["mean"] == pytest.approx(1 / 3)
    assert found["difference"]["n"] == 3
    assert found["win_rate"]["raw"]["mean"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["thinking_model"] != found["direct_model"]


@pytest.mark.parametrize("thinking_first", [True, False])
def test_thinking_is_measured_against_the_seed_without_thoughts(
    session: Session, thinking_first: bool
) -> None:
    """The seed's answers are good where it does not think."""
    seeds = {"thinking_seed": SEED, "direct_seed": [[Out(1.0)], [Out(2.0)], [Out(0.0)]]}
    earlier, later = both(session, {}, thinking_first=thinking_first, **seeds)
    found = later["thinking_vs_direct"]["win_rate_against_direct_seed"]
    assert found["raw"]["mean"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    own = (earlier if thinking_first else later)["validation"]["win_rate"]["seed"]
    assert own["raw"]["mean"] == pytest.approx((1 + 1 + 0) / 3)


@pytest.mark.parametrize("thinking_first", [True, False])
def test_both_runs_have_one_floor(session: Session, thinking_first: bool) -> None:
    """Both fail on one prompt each; only thinking has written worse responses than the seeds'."""
    config = {"judge": {"kind": "reward_model", "model": "judge"}}
    thinking, direct = [[Out(-8.0)], [BROKEN], [Out(1.0)]], [[Out(1.0)], [Out(1.0)], [BROKEN]]
    outs = {"thinking": thinking, "direct": direct}
    earlier, later = both(session, config, thinking_first=thinking_first, **outs)
    assert {r["validation"]["floor"] for r in (earlier, later)} == {-8.0, 0.5}
    difference = later["thinking_vs_direct"]["difference"]
    assert difference["mean"] == pytest.approx((-9 - 9 + 9) / 3)


def test_shares_are_said_to_be_against_seeds_of_their_own(session: Session) -> None:
    found = both(session, COMPARES, thinking_first=True)[1]["thinking_vs_direct"]
    assert found["measure"] == "share_won_against_own_seed"
    assert (found["note"], found["win_rate"]) == (OWN_SEEDS, None)
    assert found["win_rate_against_direct_seed"] is None
    assert found["difference"]["mean"] == pytest.approx(1 / 3)
