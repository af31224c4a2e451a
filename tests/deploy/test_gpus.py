"""Who has which GPU under Compose's profile `gpus`, by default and as docs/operate.md has it."""

import re

import pytest

from tests.deploy.manifests import ROOT
from tests.deploy.test_agreement import environment, in_profile

DEFAULTS: dict[str, str] = {}
(_recipe,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "operate.md").read_text(), re.DOTALL)
ON_TWO = dict(line.split("=", 1) for line in _recipe.splitlines())
EACH = pytest.mark.parametrize("env", [DEFAULTS, ON_TWO], ids=["by default", "an engine on two"])


def given(variable: str, env: dict[str, str]) -> dict[str, str]:
    """What it is in each container that has it, with these lines in .env."""
    values = {n: environment(found).get(variable) for n, found in in_profile("gpus").items()}
    found = {n: re.fullmatch(r"\$\{(\w+):-(.*)\}", value) for n, value in values.items() if value}
    return {n: env.get(match[1], match[2]) for n, match in found.items() if match}


@EACH
def test_no_gpu_is_given_twice(env: dict[str, str]) -> None:
    gpus = [
        gpu for listed in given("CUDA_VISIBLE_DEVICES", env).values() for gpu in listed.split(",")
    ]
    assert sorted(gpus) == sorted(set(gpus))


@EACH
def test_an_engine_takes_as_many_as_it_is_given(env: dict[str, str]) -> None:
    arguments = given("FORETHOUGHT_ENGINE_ARGS", env)
    assert arguments.keys() == {"worker-generate", "worker-judge", "inference"}
    for name, listed in given("CUDA_VISIBLE_DEVICES", env).items():
        if name in arguments:
            size = re.search(r"--tensor-parallel-size (\d+)", arguments[name])
            assert len(listed.split(",")) == (int(size[1]) if size else 1), name
