"""The control plane stays light: what runs all the time loads no ML library."""

import json
import subprocess
import sys

import pytest

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
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(done.stdout.splitlines()[-1]))
