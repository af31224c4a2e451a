"""How many requests to the engine an answer costs, and that those it saves change nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx2
import pytest

from shared.thinking.formats import THINK, ThoughtFormat
from tests.services.chat import fuzz
from tests.services.chat.cases import FORMATS, Case, case
from tests.services.chat.outcome import Outcome, ask
from tests.services.chat.served import QUESTION, only_served, post, script
from tests.services.chat.test_tools import TOOLS
from tests.support import tiny_model
from tests.support.access import HEADERS
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

CHAT, COMPLETE, RENDER = "/v1/chat/completions", "/v1/completions", "/tokenize"
SYSTEM = {"role": "system", "content": "Be brief."}


def answer(url: str, **fields: Any) -> httpx2.Response:
    return post(url, **({"seed": 1} | fields))


def usage(answer: httpx2.Response) -> dict[str, Any]:
    counts: dict[str, Any] = answer.json()["usage"]
    return counts


def forget() -> None:
    """No order of roles is known to be taken: the next request is rendered by itself."""
    only_served().orders.clear()


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
def test_an_answer_costs_two(warm: str, scripted: ScriptedEngine, stream: bool) -> None:
    assert answer(warm, stream=stream).status_code == 200
    assert scripted.paths == [CHAT, COMPLETE]


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"tools": TOOLS}, [RENDER, COMPLETE, COMPLETE]),
        ({"reasoning_effort": "none"}, [RENDER, COMPLETE]),
        ({"max_thought_tokens": 0}, [RENDER, COMPLETE]),
        # The room might be less than the budget.
        ({"max_thought_tokens": 4000}, [RENDER, COMPLETE, COMPLETE]),
        ({"messages": [SYSTEM, *QUESTION]}, [RENDER, COMPLETE, COMPLETE]),
    ],
)
def test_what_is_rendered_by_itself(
    warm: str, scripted: ScriptedEngine, fields: dict[str, Any], paths: list[str]
) -> None:
    assert answer(warm, **fields).status_code == 200
    # What is looked up for the first time comes in between.
    assert [path for path in scripted.paths if path in (CHAT, COMPLETE)] == paths[1:]
    assert scripted.paths[0] == RENDER


def test_an_order_of_roles_is_rendered_by_itself_once(warm: str, scripted: ScriptedEngine) -> None:
    for paths in ([RENDER, COMPLETE, COMPLETE], [CHAT, COMPLETE]):
        scripted.paths.clear()
        assert answer(warm, messages=[SYSTEM, *QUESTION]).status_code == 200
        assert scripted.paths == paths


class TestPrefix:
    @pytest.fixture
    def fmt(self) -> ThoughtFormat:
        return THINK

    def test_it_is_put_behind_a_rendered_prompt(self, warm: str, scripted: ScriptedEngine) -> None:
        assert answer(warm).status_code == 200
        assert scripted.paths == [RENDER, COMPLETE, COMPLETE]


@pytest.mark.parametrize("fmt", [f for f in FORMATS if not f.prefix], ids=lambda f: f.name)
def test_the_way_changes_neither_answer_nor_usage(
    served: str, scripted: ScriptedEngine, fmt: ThoughtFormat
) -> None:
    def settled(made: Case) -> Outcome:
        async def asked() -> Outcome:
            async with aiohttp.ClientSession(headers=HEADERS) as http:
                return (await ask(http, served, made.body, stream=made.number % 2 == 0)).settled()

        return asyncio.run(asked())

    scripted.paths.clear()
    for number in range(40):
        made = case(number, fmt)
        scripted.script = made.play
        at_once = settled(made)
        forget()
        assert at_once == settled(made), made
        assert not fuzz.leaks(at_once.seen)
    assert scripted.paths.count(CHAT) > 10


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_refuses_is_asked_as_before(
    warm: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(scripted, "refuses", "messages")
    answered = answer(warm, stream=stream)
    assert answered.status_code == 200
    assert "error" not in answered.text
    assert scripted.paths == [CHAT, RENDER, COMPLETE, COMPLETE]


def test_an_engine_that_tells_no_ids_is_not_asked_again(
    warm: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = usage(answer(warm))
    monkeypatch.setattr(scripted, "chats_with_ids", False)
    for paths in ([CHAT, RENDER, COMPLETE, COMPLETE], [RENDER, COMPLETE, COMPLETE]):
        scripted.paths.clear()
        assert usage(answer(warm)) == expected
        assert scripted.paths == paths


@pytest.mark.parametrize(
    ("thought", "paths"),
    [
        ("x" * 100 + "Here is my response:", [CHAT, COMPLETE]),
        ("x" * 400, [CHAT, COMPLETE, COMPLETE]),
    ],
)
def test_a_thought_too_long_for_the_room_is_made_anew(
    warm: str,
    scripted: ScriptedEngine,
    template: pytest.MonkeyPatch,
    thought: str,
    paths: list[str],
) -> None:
    """The template adds what is in no message: some 300 tokens are left, half of them for it."""
    begin_template(template, scripted, "so " * 1160)
    scripted.script = script("Forty two.", thought)
    scripted.paths.clear()
    at_once = answer(warm)
    assert at_once.status_code == 200
    assert [path for path in scripted.paths if path in (CHAT, COMPLETE)] == paths
    forget()
    assert usage(answer(warm)) == usage(at_once)


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


def test_a_template_that_refuses_a_text_is_said_so_in_a_stream(
    warm: str, scripted: ScriptedEngine, template: pytest.MonkeyPatch
) -> None:
    refusal = "{% if '25' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    begin_template(template, scripted, refusal)
    assert answer(warm).status_code == 400
    streamed = answer(warm, stream=True).text
    assert '"param":"messages"' in streamed
    assert "secret" not in streamed


def test_a_client_that_leaves_frees_the_engine_of_its_thought(
    warm: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    aborted = scripted.aborted
    body = {"model": "demo", "messages": QUESTION}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{warm}/v1/chat/completions", json=body, headers=HEADERS, timeout=0.1)
    until(lambda: scripted.aborted == aborted + 1, "the engine's request is aborted")
    assert scripted.paths == [CHAT]
