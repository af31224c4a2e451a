"""The Responses route, by the openai client: stateless, and as silent about thoughts."""

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.services.chat.served import SECRET, THOUGHT, script
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play
from tests.support.scripted_engine import ScriptedEngine

IMAGE = {"type": "input_image", "image_url": "data:,"}


def test_a_response_is_the_answer_with_its_usage(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script = script(f"Forty {THOUGHT}two.")
    response = client.responses.create(
        model="demo", input="What is 17 + 25?", instructions="Be brief.", metadata={"a": "b"}
    )
    assert response.output_text == "Forty \ntwo."
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == len(THOUGHT.rstrip())
    assert SECRET not in response.model_dump_json()
    assert "Be brief." in scripted.tokenizer.decode(scripted.requests[-1]["prompt"])


def test_its_events_make_the_same_response(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    scripted.script = script(f"Forty {THOUGHT}two.")
    with client.responses.stream(model="demo", input="What is 17 + 25?") as events:
        seen = list(events)
        response = events.get_final_response()
    assert "".join(e.delta for e in seen if e.type == "response.output_text.delta") == (
        response.output_text
    )
    assert response.output_text == "Forty \ntwo."
    assert [e.sequence_number for e in seen] == sorted(e.sequence_number for e in seen)
    assert seen[0].type == "response.created"
    assert seen[-1].type == "response.completed"
    assert SECRET not in repr(seen)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_off_is_incomplete(
    client: openai.OpenAI, scripted: ScriptedEngine, stream: bool
) -> None:
    scripted.script = script("word " * 50)
    request: dict[str, Any] = {"model": "demo", "input": "Go on.", "max_output_tokens": 100}
    if stream:
        *_, last = client.responses.create(**request, stream=True)
        assert last.type == "response.incomplete"
        response: Any = last.response
    else:
        response = client.responses.create(**request)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 100


def test_thoughts_of_others_are_not_fed_back(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script = script("Yes.")
    items: Any = [
        {"role": "user", "content": "Hello?"},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": SECRET}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Sure?"}]},
    ]
    client.responses.create(model="demo", input=items)
    prompt = scripted.tokenizer.decode(scripted.requests[-1]["prompt"])
    assert SECRET not in prompt.split("assistant\nHi.")[0]
    assert "assistant\nHi." in prompt


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": "word " * 5000}, "input"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ],
)
def test_what_is_refused_in_the_middle_is_named_as_it_was_sent(
    served: str,
    scripted: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    param: str,
) -> None:
    monkeypatch.setattr(scripted, "refuses", "response_format")
    scripted.script = script("{}")
    body = {"model": "demo", "input": "Hi"} | change
    answer = httpx2.post(f"{served}/v1/responses", json=body, headers=HEADERS)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    streamed = httpx2.post(
        f"{served}/v1/responses", json=body | {"stream": True}, headers=HEADERS
    ).text
    assert f'"message":"{param}: ' in streamed


def test_a_stream_that_fails_says_so(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    scripted.script = script(Play(f"{SECRET} two.", fails_after=0))
    events = list(client.responses.create(model="demo", input="Go on.", stream=True))
    assert events[-1].type == "response.failed"
    assert SECRET not in repr(events)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "add"}}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"stop": ["x"]}, "stop"),
        ({"seed": 0}, "seed"),
        ({"n": 2}, "n"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_thought_tokens": 0}, "max_thought_tokens"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.0.content"),
        (
            {"input": [{"type": "reasoning"}, {"role": "user", "content": [IMAGE]}]},
            "input.1.content",
        ),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": 5}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"instructions": "\ud800"}, "instructions"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"metadata": {"\ud800": "a"}}, "metadata"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_it_does_not_do_is_named(
    served: str, change: dict[str, Any], param: str, stream: bool
) -> None:
    body = json.dumps({"model": "demo", "input": "Hi", "stream": stream} | change)
    headers = {"content-type": "application/json", **HEADERS}
    answer = httpx2.post(f"{served}/v1/responses", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "max_tool_calls": 1},
        {"background": False, "previous_response_id": None, "top_logprobs": 0},
        {"n": 1, "seed": None, "frequency_penalty": 0, "logprobs": False},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}},
        {"user": "u", "store": True, "service_tier": "auto", "safety_identifier": "u"},
        {"prompt_cache_key": "k", "truncation": "auto", "text": {"verbosity": "low"}},
        {"stream_options": {"include_obfuscation": False}, "a_field_of_next_month": [1]},
    ],
)
def test_what_asks_for_nothing_changes_nothing(
    served: str, scripted: ScriptedEngine, field: dict[str, Any]
) -> None:
    scripted.script = script("Yes.")
    body = {"model": "demo", "input": "Sure?"} | field
    answer = httpx2.post(f"{served}/v1/responses", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"][0]["content"][0]["text"] == "Yes."


def test_an_empty_schema_is_one(served: str, scripted: ScriptedEngine) -> None:
    scripted.script = script('{"a": 1}')
    text = {"format": {"type": "json_schema", "name": "any", "schema": {}}}
    body = {"model": "demo", "input": "Hi", "text": text}
    answer = httpx2.post(f"{served}/v1/responses", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text


def test_nulls_mean_that_a_field_is_absent(served: str, scripted: ScriptedEngine) -> None:
    scripted.script = script("Yes.")
    item = {"role": "user", "content": "Sure?", "type": None}
    text = {"format": {"type": "text", "name": None, "schema": None}}
    body = {"model": "demo", "input": [item], "text": text, "reasoning": {"effort": None}}
    answer = httpx2.post(f"{served}/v1/responses", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
