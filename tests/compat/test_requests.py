"""Requests of early configurations and of the first README are still taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from services.chat.schema import ChatRequest
from services.coordinator.datasets.routes import DatasetSource
from shared.schemas.requests import IterationRequest, ModelRegistration, Resume

FOLDER = Path(__file__).parent / "requests"
README: dict[str, dict[str, Any]] = json.loads((FOLDER / "readme.json").read_text())
MODELS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    DatasetSource,
    IterationRequest,
    ModelRegistration,
    Resume,
)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_configuration_of_then_is_a_request_of_now(file: Path) -> None:
    IterationRequest.model_validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("name", README)
def test_a_request_of_the_first_readme_is_one_of_now(name: str) -> None:
    (model,) = (model for model in MODELS if model.__name__ == name.split()[0])
    model.model_validate(README[name])
