"""No thought reaches a client, whatever the model writes and however the engine cuts it up."""

import os

import pytest

from shared.formats import ThoughtFormat
from tests.coordinator.chat import fuzz
from tests.coordinator.chat.cases import FORMATS
from tests.scripted_engine import ScriptedEngine

CASES = int(os.environ.get("CASES", "400"))
"""Of each format; `make fuzz-chat` sets more."""


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_no_adversarial_case_leaks(
    served: str, scripted: ScriptedEngine, fmt: ThoughtFormat
) -> None:
    findings = fuzz.run(scripted, served, fmt, range(CASES))

    assert findings.wrong == [], f"{len(findings.wrong)}, the first: {findings.wrong[0]}"
    assert findings.cases == CASES
    assert findings.answers > CASES / 2
