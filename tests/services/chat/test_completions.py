"""Chat over the openai client: what a client can see, byte by byte, while the engine misbehaves."""

import json
import re
import uuid
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion
from sqlalchemy import func

from services.chat import admission
from shared.db.engine import transaction
from shared.db.tables import Serving
from shared.thinking.formats import FORMATS
from tests.services.chat import served as chat
from tests.services.chat.served import QUESTION, SECRET, THOUGHT, only_model, script, thinks
from tests.support import factories
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until


def thought_tokens(answer: ChatCompletion) -> int | None:
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    return answer.usage.completion_tokens_details.reasoning_tokens


HALF = "\ud800"
"""Half of a surrogate pair: JSON can hold it, UTF-8 cannot."""


def schema(schema: dict[str, Any]) -> dict[str, Any]:
    wanted = {"name": "a", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def deep(levels: int) -> dict[str, Any]:
    return {"not": deep(levels - 1)} if levels else {}


def post(url: str, body: str) -> httpx2.Response:
    headers = {"content-type": "application/json", **HEADERS}
    return httpx2.post(f"{url}/v1/chat/completions", content=body, headers=headers)


def streamed(client: openai.OpenAI, **request: Any) -> str:
    chunks = client.chat.completions.create(model="demo", messages=QUESTION, stream=True, **request)
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)


def test_no_byte_of_an_answer_holds_the_thought(served: str, scripted: ScriptedEngine) -> None:
    scripted.script = script(f"Forty two. {THOUGHT}Also 42.")
    for stream in (False, True):
        body = {"model": "demo@v1", "messages": QUESTION, "stream": stream}
        answer = httpx2.post(f"{served}/v1/chat/completions", json=body, headers=HEADERS)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert SECRET not in str(answer.headers)


def test_tokens_are_counted_where_they_were_generated(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script = script("Forty two.")
    answer = client.chat.completions.create(model="demo", messages=QUESTION, n=2)
    assert answer.usage is not None
    # The marker ends a thought; what the script writes behind it is not generated.
    thought = len(THOUGHT.rstrip())
    assert thought_tokens(answer) == 2 * thought
    assert answer.usage.completion_tokens == 2 * (thought + len("Forty two.") + 1)


@pytest.mark.parametrize("effort", ["none", "medium"])
def test_greedy_choices_are_all_alike_and_are_not_refused(
    client: openai.OpenAI, scripted: ScriptedEngine, effort: Any
) -> None:
    scripted.script = script("Forty two.")
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, n=2, temperature=0, reasoning_effort=effort
    )
    assert [choice.message.content for choice in answer.choices] == ["Forty two."] * 2
    assert thought_tokens(answer) == (0 if effort == "none" else 2 * len(THOUGHT.rstrip()))


def test_the_thought_prompt_is_around_the_newest_question_only(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script, before = script("Forty two."), len(scripted.requests)
    history: list[Any] = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        *QUESTION,
    ]
    client.chat.completions.create(model="demo", messages=history)
    prompt = scripted.tokenizer.decode(scripted.requests[before]["prompt"])
    assert prompt.count("thought process before") == 1
    assert prompt.index("Hi.") < prompt.index("thought process before")


def test_effort_none_answers_without_thinking(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script = script("Forty two.")
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, reasoning_effort="none"
    )
    assert answer.choices[0].message.content == "Forty two."
    assert thought_tokens(answer) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_counts_from_the_first_token(
    served: str, scripted: ScriptedEngine, stream: bool
) -> None:
    scripted.script = script("4 2")
    answer = chat.post(served, stop="4", stream=stream).text
    assert '"stop"' in answer
    assert "2" not in re.findall(r'"content":"([^"]*)"', answer)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_does_not_fire_in_the_space_before_the_answer(
    served: str, scripted: ScriptedEngine, stream: bool
) -> None:
    # What is written depends on what stands there already, as with a model.
    scripted.script = lambda prompt, _: (
        THOUGHT if thinks(prompt) else "Forty\n\ntwo" if prompt.endswith("\n\n") else "\n\nForty"
    )
    answer = chat.post(served, stop="\n\n", stream=stream).text
    assert "".join(re.findall(r'"content":"([^"]*)"', answer)) == "Forty"
    assert '"finish_reason":"stop"' in answer


def test_a_model_that_writes_nothing_but_space_is_not_asked_for_ever(
    served: str, scripted: ScriptedEngine
) -> None:
    scripted.script = script("\n\n")
    answer = chat.post(served, stop="\n\n").json()
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_it_stops_at_a_stop_string(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    scripted.script = script("one, two, three")
    answer = client.chat.completions.create(model="demo", messages=QUESTION, stop=", t")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one", "stop")


def test_models_are_listed_by_version_and_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo@v1", "demo"]
    assert client.models.retrieve("demo").owned_by == "forethought"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 0}, 400, "n"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
        ({"functions": [{"name": "f"}]}, 400, "functions"),
        ({"moderation": {"model": "m"}}, 400, "moderation"),
        # Of a union, the type that fits best says what is wrong.
        ({"stop": 5}, 400, "stop"),
        ({"stop": ["a", 5]}, 400, "stop.1"),
        ({"tool_choice": "maybe"}, 400, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, 400, "tool_choice.function"),
        # What can be parsed, but not be passed on.
        ({"messages": [{"role": "user", "content": HALF}]}, 400, "messages.0.content"),
        ({"stop": HALF}, 400, "stop"),
        ({"stop": ["a", HALF]}, 400, "stop.1"),
        ({"logit_bias": {HALF: 1}}, 400, "logit_bias"),
        ({"temperature": float("nan")}, 400, "temperature"),
        (schema({"enum": [HALF]}), 400, "response_format.json_schema.schema"),
        (schema({HALF: 1}), 400, "response_format.json_schema.schema"),
        (schema({"maximum": 2**64}), 400, "response_format.json_schema.schema"),
        (schema(deep(300)), 400, "response_format.json_schema.schema"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep(300)}}]},
            400,
            "tools.0.function.parameters",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_names_its_field(
    served: str, change: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    body = {"model": "demo", "messages": QUESTION, "stream": stream} | change
    answer = post(served, json.dumps(body))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert "NamedTool" not in answer.text
    assert "constrained" not in answer.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"model": ', "the body is not JSON"),
        ("[]", "body: Input should be an object"),
        ("", "body: Field required"),
    ],
)
def test_a_body_that_is_no_object_is_said_so(served: str, body: str, said: str) -> None:
    answer = post(served, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["message"], error["param"]) == (400, said, None)


def test_a_clients_nulls_mean_that_a_field_is_absent(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """As clients send an answer back to go on with the conversation."""
    scripted.script = script("Forty two.")
    answer = client.chat.completions.create(model="demo", messages=QUESTION)
    history: list[Any] = [*QUESTION, answer.choices[0].message.model_dump(), *QUESTION]
    assert "tool_calls" in history[1]
    function = {"name": "f", "description": None, "parameters": None, "strict": None}
    tools: list[Any] = [{"type": "function", "function": function}]
    options: Any = {"include_usage": None}
    request: dict[str, Any] = {"model": "demo", "messages": history, "tools": tools}
    client.chat.completions.create(**request)
    assert list(client.chat.completions.create(**request, stream=True, stream_options=options))


def test_a_model_promoted_but_not_loaded_is_worth_waiting_for(served: str) -> None:
    with transaction() as session:
        factories.model(session, name="demo", version=2, promoted_at=func.now())
    body = {"model": "demo@v2", "messages": QUESTION}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body, headers=HEADERS)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "model_not_ready"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_own_words_do_not_reach_a_client(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(scripted, "status", 500)
    body = {"model": "demo", "messages": QUESTION, "stream": stream}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body, headers=HEADERS)
    assert "secret" not in answer.text
    assert "the model failed to answer" in answer.text


@pytest.mark.parametrize("given_up", ["thought", "answer"])
def test_what_the_engine_gives_up_is_worth_asking_again(
    served: str, scripted: ScriptedEngine, given_up: str
) -> None:
    plays = {"thought": THOUGHT, "answer": "Forty two."}
    scripted.script = script(**plays | {given_up: Play(plays[given_up], finish="abort")})
    answer = chat.post(served)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "Forty" not in answer.text


def test_a_stream_that_breaks_ends_in_an_error_event(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    answer = Play("Forty two.", breaks_after=3)
    scripted.script = script(answer)
    with pytest.raises(openai.APIError, match="not ready"):
        streamed(client)


def test_a_client_that_leaves_frees_the_engine(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = script("word " * 500)
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    body = {"model": "demo", "messages": QUESTION, "stream": True, "reasoning_effort": "none"}
    aborted = scripted.aborted
    with httpx2.stream(
        "POST", f"{served}/v1/chat/completions", json=body, headers=HEADERS
    ) as answer:
        for line in answer.iter_lines():
            if '"content":"w"' in line:
                break
    until(lambda: scripted.aborted == aborted + 1, "the engine's stream is aborted")
    until(lambda: admission.LIMITER.taken == 0, "the place is free again")


def test_more_than_it_can_answer_are_sent_away(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission.LIMITER, "taken", 10**6)
    body = {"model": "demo", "messages": QUESTION}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body, headers=HEADERS)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_a_format_without_thoughts_answers_at_once(
    client: openai.OpenAI, scripted: ScriptedEngine, served: str
) -> None:
    with transaction() as session:
        model = factories.model(
            session,
            name="direct",
            thought_format=FORMATS["none"].model_dump(),
            id=(other := uuid.uuid4()),
        )
        session.query(Serving).update({Serving.model_id: model.id})
    until(lambda: only_model() == other, "it serves the other")
    scripted.script = lambda *_: "Forty two."
    answer = client.chat.completions.create(model="direct", messages=QUESTION)
    assert answer.choices[0].message.content == "Forty two."
    assert thought_tokens(answer) == 0
