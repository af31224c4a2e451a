"""`forethought iterate`, `cancel` and `resume`."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from services.cli.commands import iterate as iterate_commands
from shared.db.engine import transaction
from tests.services.cli.commands.commanded import client, run
from tests.support import factories


@pytest.fixture
def iteration(clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of one that waits for the loop."""
    monkeypatch.setattr(iterate_commands, "connect", lambda _: client())
    with transaction() as session:
        factories.model(session)
        factories.dataset(session)
    config = {"name": "thinker", "base_model": "seed", "dataset": "prompts"}
    return str(client().start_run(config, key="once")["id"])


def test_an_iteration_is_cancelled_and_goes_on_with_other_settings(
    iteration: str, tmp_path: Path
) -> None:
    assert "is cancelled" in run("cancel", iteration)
    settings = tmp_path / "training.yaml"
    settings.write_text("learning_rat: 1.0e-6")
    assert "training.learning_rat" in run("resume", iteration, "--training", str(settings), code=1)
    settings.write_text("learning_rate: 1.0e-6")
    assert "goes on" in run("resume", iteration, "--training", str(settings))
    found = client().iteration(iteration)
    assert found is not None
    assert (found["status"], found["config"]["training"]["learning_rate"]) == ("queued", 1e-6)
    assert "only a failed or cancelled one" in run("resume", iteration, code=1)


def test_who_watched_a_failure_is_told_how_to_go_on(
    iteration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*_: Any) -> list[dict[str, Any]]:
        return [{"id": iteration, "status": "failed"}]

    run("cancel", iteration)
    monkeypatch.setattr(iterate_commands, "watch", failed)
    said = run("resume", iteration, "--watch", code=1)
    assert f"forethought resume {iteration} --watch" in said
