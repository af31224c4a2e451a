"""Processes that run all the time load no ML library, and workers no web framework."""

import json
import subprocess
import sys

import pytest

WEB = {"fastapi", "starlette"}
HEAVY = {"torch", "transformers", "trl", "peft", "vllm", "datasets", "pandas"}


@pytest.mark.parametrize(
    "module",
    [
        "services.chat.app",
        "services.coordinator.app",
        "services.coordinator.loop",
        "services.generate.app",
        "services.judge.app",
        "services.train.app",
        "workers.tasks",
        "workers.runtime",
        "workers.engine.inference",
        "workers.generate.stage",
        "workers.judge.stage",
        "workers.train.job",
        "workers.models.prune",
        "services.cli.main",
    ],
)
def test_a_process_that_stays_loads_no_ml_library(module: str) -> None:
    assert HEAVY.isdisjoint(loaded(module))


@pytest.mark.parametrize(
    "module",
    [
        "workers.tasks",
        "workers.engine.inference",
        "workers.generate.stage",
        "workers.judge.stage",
        "workers.judge.checks.verifier",
        "workers.judge.llm.openai_api",
        "workers.train.job",
        "workers.models.register",
        "workers.models.prune",
    ],
)
def test_a_worker_starts_without_the_web_framework(module: str) -> None:
    assert WEB.isdisjoint(loaded(module))


def loaded(module: str) -> set[str]:
    """Names of all modules that are loaded once this one has been imported."""
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))
