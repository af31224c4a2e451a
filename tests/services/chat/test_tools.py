"""Tools and structured answers, as the openai client sends and reads them."""

import json
from typing import Any

import openai
import pytest

from tests.services.chat.served import QUESTION, SECRET, post, script
from tests.support import tiny_model
from tests.support.scripted_engine import ScriptedEngine

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("add", "double")
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_as_openais(
    client: openai.OpenAI, scripted: ScriptedEngine, stream: bool
) -> None:
    scripted.script = script(f"{CALL}\n{CALL}")
    request: dict[str, Any] = {"model": "demo", "messages": QUESTION, "tools": TOOLS}
    if stream:
        with client.chat.completions.stream(**request) as events:
            [choice] = events.get_final_completion().choices
    else:
        [choice] = client.chat.completions.create(**request).choices
    calls: list[Any] = choice.message.tool_calls or []
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        ("add", {"a": 1})
    ] * 2
    assert len({c.id for c in calls}) == 2
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content


@pytest.mark.parametrize(
    ("choice", "names", "required"),
    [
        ("auto", ["add", "double"], False),
        ("required", ["add", "double"], True),
        ({"type": "function", "function": {"name": "double"}}, ["double"], True),
    ],
)
def test_the_engine_is_bound_to_the_tools(
    client: openai.OpenAI, scripted: ScriptedEngine, choice: Any, names: list[str], required: bool
) -> None:
    scripted.script = script(CALL)
    client.chat.completions.create(
        model="demo", messages=QUESTION, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False
    )
    thought, answer = scripted.requests[-2:]
    assert "response_format" not in thought
    grammar = answer["response_format"]["format"]
    assert [n for n in ("add", "double") if any(n in t["begin"] for t in grammar["tags"])] == names
    assert (grammar["at_least_one"], grammar["stop_after_first"]) == (required, True)


def test_tools_that_may_not_be_called_bind_nothing(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script = script(f"So: {CALL}")
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, tools=TOOLS, tool_choice="none"
    )
    assert "response_format" not in scripted.requests[-1]
    assert answer.choices[0].message.tool_calls is None
    assert "add" not in scripted.tokenizer.decode(scripted.requests[-1]["prompt"])


def test_a_template_without_tools_is_said_so(
    client: openai.OpenAI, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_model.TEMPLATE[tiny_model.TEMPLATE.index("{% for m in messages") :]
    monkeypatch.setattr(scripted.chat_template, "chat_template", plain)
    scripted.render.cache_clear()
    with pytest.raises(openai.BadRequestError, match="has no tools") as error:
        client.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS)
    assert error.value.param == "tools"
    client.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS, tool_choice="none")
    scripted.render.cache_clear()


def test_a_schema_is_for_the_answer_only(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    scripted.script = script('{"a": 1}')
    schema: Any = {"type": "json_schema", "json_schema": {"name": "A", "schema": PARAMETERS}}
    answer = client.chat.completions.create(model="demo", messages=QUESTION, response_format=schema)
    assert answer.choices[0].message.content == '{"a": 1}'
    thought, phase2 = scripted.requests[-2:]
    assert "response_format" not in thought
    assert phase2["response_format"] == schema


@pytest.mark.parametrize("grammar", ["response_format", "tools"])
@pytest.mark.parametrize(
    ("refused", "named"),
    [("response_format", None), ("logit_bias", "logit_bias"), ("logprobs", "top_logprobs")],
)
def test_what_the_engine_cannot_use_is_named(
    served: str,
    scripted: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    grammar: str,
    refused: str,
    named: str | None,
) -> None:
    monkeypatch.setattr(scripted, "refuses", refused)
    grammars: dict[str, Any] = {"response_format": {"type": "json_object"}, "tools": TOOLS}
    biased: dict[str, Any] = {"logit_bias": {"7": 5}, "logprobs": True, "top_logprobs": 5}
    answer = post(served, **biased, **{grammar: grammars[grammar]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == (named or grammar)
    assert "secret" not in answer.text


def test_what_the_engine_refuses_of_ours_is_not_blamed_on_the_client(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "refuses", "min_tokens")
    answer = post(served, response_format={"type": "json_object"}, logit_bias={"7": 5})
    assert (answer.status_code, answer.json()["error"]["param"]) == (503, None)


def test_logprobs_come_as_openais(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    scripted.script = script(f"42. Here is my thought process: {SECRET}")
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    rows = logprobs.content or []
    assert "".join(row.token for row in rows) == "42. "
    assert [top.token for top in rows[0].top_logprobs] == ["4", "?"]
    assert rows[0].bytes == [ord("4")]
