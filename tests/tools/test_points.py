"""Processes of the platform are known by their command lines, wherever their modules lie."""

import importlib.util
import sys

import pytest

from tools.chaos import disturbances
from tools.chaos.points import HOOKS, ROLES, SESSIONS, role
from workers.stage_process import STAGES


@pytest.mark.parametrize("module", [*ROLES, *HOOKS, *SESSIONS])
def test_what_is_named_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def test_every_stage_has_a_role() -> None:
    assert set(STAGES.values()) <= set(ROLES)
    roles = set(ROLES.values()) | {"generate-service"}
    assert {*disturbances.STAGES, *disturbances.SKEWED} <= roles


def test_a_process_is_known_by_the_module_that_it_runs() -> None:
    python = [sys.executable, "-m"]
    assert role([*python, "uvicorn", "services.judge.app:app", "--fd", "3"]) == "judge-service"
    assert role([*python, "celery", "-A", "workers.tasks", "worker"]) == "worker"
    assert role([*python, "workers.judge.stage", "--job", "1"]) == "judge"
    assert role([*python, "accelerate.commands.launch", "-m", "workers.train.train"]) == "train"
    assert role([*python, "pytest", "tests/workers"]) == "other"
