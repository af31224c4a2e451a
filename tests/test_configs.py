"""The shipped configurations are bodies that POST /iterations takes, with the paper's settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.coordinator.iterations.create import _refuse_untrainable
from shared.errors import InvalidRequest
from shared.schemas import judge_permissions
from shared.schemas.requests import IterationRequest
from shared.settings import Settings
from shared.thinking.formats import SPECIFIC

ROOT = Path(__file__).parents[1] / "configs"
FILES = sorted([*ROOT.glob("iterations/*.yaml"), ROOT / "demo" / "demo.yaml"])
PAPERS = ("paper-armorm", "paper-skywork")


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def paper(name: str) -> IterationRequest:
    return IterationRequest.model_validate(read(ROOT / "iterations" / f"{name}.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_a_request(file: Path) -> None:
    request = IterationRequest.model_validate(read(file))
    _refuse_untrainable(request)
    assert request.dataset is not None


def test_there_is_one_for_each_way() -> None:
    assert [file.stem for file in FILES] == ["demo", "one-gpu-lora", *PAPERS]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings(name: str) -> None:
    request = paper(name)
    assert (request.prompts_per_iteration, request.count) == (5000, 4)
    assert request.thought_format == SPECIFIC
    s = request.sampling
    assert (s.samples, s.temperature, s.top_p, s.boundary) == (8, 0.8, 0.95, "natural")
    assert 0 <= request.length_control.rho <= 0.5
    assert request.pairing.max_parse_failure_fraction == 0.1
    assert (request.training.loss, request.training.epochs) == ("dpo", 10)
    assert request.training.lora is None
    assert request.validation.checkpoints == "all"
    assert 500 <= request.validation.prompts <= 1500
    assert request.baseline, "every claim about thinking is a comparison with it"


@pytest.mark.parametrize("name", PAPERS)
def test_eight_gpus_share_the_papers_steps(name: str) -> None:
    training = paper(name).training
    assert training.batch_size % (8 * training.micro_batch_size) == 0


def test_the_papers_differ_in_their_judges_alone() -> None:
    armorm, skywork = (paper(name).model_dump(exclude={"name", "judge"}) for name in PAPERS)
    assert armorm == skywork


def test_only_armorm_needs_the_operators_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    armorm, skywork = (paper(name).judge for name in PAPERS)
    judge_permissions.check(skywork, "judge")
    with pytest.raises(InvalidRequest, match="FORETHOUGHT_REMOTE_CODE"):
        judge_permissions.check(armorm, "judge")
    text = (ROOT / "iterations" / "paper-armorm.yaml").read_text()
    _, _, rest = text.partition("FORETHOUGHT_REMOTE_CODE=")
    allowed = Settings(remote_code=rest.split()[0])
    monkeypatch.setattr("shared.schemas.judge_permissions.get_settings", lambda: allowed)
    judge_permissions.check(armorm, "judge")
