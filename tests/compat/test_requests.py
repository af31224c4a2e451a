"""Requests of early configurations are still taken."""

from pathlib import Path

import pytest
import yaml

from shared.schemas.requests import IterationRequest

REQUESTS = sorted((Path(__file__).parent / "requests").glob("*.yaml"))


@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.stem)
def test_a_configuration_of_then_is_a_request_of_now(file: Path) -> None:
    IterationRequest.model_validate(yaml.safe_load(file.read_text()))
