"""The requests to the engine that an answer is made of."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from shared.thinking.formats import THINK, ThoughtFormat
from tests.services.chat.served import QUESTION, post, script
from tests.services.chat.test_tools import TOOLS
from tests.support import tiny_model
from tests.support.access import HEADERS
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

COMPLETE, RENDER = "/v1/completions", "/tokenize"
SYSTEM = {"role": "system", "content": "Be brief."}


def answer(url: str, **fields: Any) -> httpx2.Response:
    return post(url, **({"seed": 1} | fields))


def usage(answer: httpx2.Response) -> dict[str, Any]:
    counts: dict[str, Any] = answer.json()["usage"]
    return counts


@pytest.fixture
def warm(served: str, scripted: ScriptedEngine) -> str:
    """The coordinator's address, once it has looked up what is kept."""
    scripted.script = script("Forty two.")
    assert answer(served).status_code == 200
    scripted.paths.clear()
    return served


@pytest.fixture
def template(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """To put another text before the template."""
    yield monkeypatch
    monkeypatch.undo()
    scripted.render.cache_clear()


def begin_template(template: pytest.MonkeyPatch, scripted: ScriptedEngine, text: str) -> None:
    template.setattr(scripted.chat_template, "chat_template", text + tiny_model.TEMPLATE)
    scripted.render.cache_clear()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({}, [RENDER, COMPLETE, COMPLETE]),
        ({"tools": TOOLS}, [RENDER, COMPLETE, COMPLETE]),
        ({"reasoning_effort": "none"}, [RENDER, COMPLETE]),
        ({"max_thought_tokens": 0}, [RENDER, COMPLETE]),
        ({"messages": [SYSTEM, *QUESTION]}, [RENDER, COMPLETE, COMPLETE]),
    ],
)
def test_an_answer_is_rendered_thought_and_written(
    warm: str, scripted: ScriptedEngine, fields: dict[str, Any], paths: list[str], stream: bool
) -> None:
    assert answer(warm, stream=stream, **fields).status_code == 200
    # What is looked up for the first time comes in between.
    assert [path for path in scripted.paths if path == COMPLETE] == paths[1:]
    assert scripted.paths[0] == RENDER


class TestPrefix:
    @pytest.fixture
    def fmt(self) -> ThoughtFormat:
        return THINK

    def test_it_is_put_behind_a_rendered_prompt(self, warm: str, scripted: ScriptedEngine) -> None:
        assert answer(warm).status_code == 200
        assert scripted.paths == [RENDER, COMPLETE, COMPLETE]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thought", ["x" * 100 + "Here is my response:", "x" * 400])
def test_a_thought_leaves_the_answer_half_of_the_room(
    warm: str, scripted: ScriptedEngine, template: pytest.MonkeyPatch, thought: str, stream: bool
) -> None:
    """The template adds what is in no message: some 300 tokens are left, half of them for it."""
    begin_template(template, scripted, "so " * 1160)
    scripted.script = script("Forty two.", thought)
    assert answer(warm, stream=stream).status_code == 200
    thinking, answering = (body["max_tokens"] for body in scripted.requests[-2:])
    assert thinking < 200
    assert answering > 100


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_that_refuses_an_order_has_its_status(
    warm: str, scripted: ScriptedEngine, template: pytest.MonkeyPatch, stream: bool
) -> None:
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    begin_template(template, scripted, refusal)
    refused = answer(warm, messages=[SYSTEM, *QUESTION], stream=stream)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert "secret" not in refused.text
    assert answer(warm).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_that_refuses_a_text_has_its_status(
    warm: str, scripted: ScriptedEngine, template: pytest.MonkeyPatch, stream: bool
) -> None:
    refusal = "{% if '25' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    begin_template(template, scripted, refusal)
    refused = answer(warm, stream=stream)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert "secret" not in refused.text


def test_a_client_that_leaves_frees_the_engine_of_its_thought(
    warm: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    aborted = scripted.aborted
    body = {"model": "demo", "messages": QUESTION}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{warm}/v1/chat/completions", json=body, headers=HEADERS, timeout=0.1)
    until(lambda: scripted.aborted == aborted + 1, "the engine's request is aborted")
    assert scripted.paths == [RENDER, COMPLETE]
