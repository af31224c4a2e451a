"""No thought reaches a client, whatever the model writes and however the engine cuts it up."""

import os
from collections.abc import Sequence
from typing import Any

import openai
import pytest

from shared.thinking.formats import ThoughtFormat
from tests.services.chat import fuzz
from tests.services.chat.cases import FORMATS, MARKERS, TOOL
from tests.services.chat.served import QUESTION, script
from tests.support import factories, tiny_model
from tests.support.scripted_engine import ScriptedEngine

CASES = int(os.environ.get("CASES", "200"))
"""Of each format and tokenizer; `make fuzz-chat` sets more."""


@pytest.fixture(scope="module", params=[(), MARKERS], ids=["bytes", "special tokens"])
def scripted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ScriptedEngine:
    """Markers are made of many tokens, or each is a special one."""
    special: Sequence[str] = request.param
    folder = tiny_model.write(tmp_path_factory.mktemp("tiny"), special=special)
    return ScriptedEngine(folder, lambda *_: "", label=factories.WEIGHTS)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_no_adversarial_case_leaks(
    served: str, scripted: ScriptedEngine, fmt: ThoughtFormat
) -> None:
    findings = fuzz.run(scripted, served, fmt, range(CASES))

    assert findings.wrong == [], f"{len(findings.wrong)}, the first: {findings.wrong[0]}"
    assert findings.cases == CASES
    assert findings.answers > CASES / 2


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_a_call_is_read_whatever_its_tokens_are(
    client: openai.OpenAI, scripted: ScriptedEngine, fmt: ThoughtFormat
) -> None:
    call = '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'
    scripted.script = script(call, f"Hm. {fmt.response_marker}")
    request: dict[str, Any] = {"model": "demo", "messages": QUESTION, "tools": [TOOL]}
    [choice] = client.chat.completions.create(**request).choices
    assert [c.function.name for c in choice.message.tool_calls or []] == ["look_up"]
    assert choice.finish_reason == "tool_calls"
