"""Chat over the openai client: what a client can see, byte by byte, while the engine misbehaves."""

import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from sqlalchemy import Engine, delete, func

from services.coordinator import chat
from services.coordinator import serving as serving_cache
from services.coordinator.app import app
from services.coordinator.serving import CACHE
from shared.db import transaction
from shared.formats import FORMATS, GENERIC
from shared.models import Serving
from tests import factories
from tests.scripted_engine import ScriptedEngine, running, serving
from tests.waiting import until
from tests.workers import tiny_model

SECRET = "SECRET"
THOUGHT = f"{GENERIC.thought_marker} {SECRET} thought.\n{GENERIC.response_marker}\n"
ANSWERS = st.lists(
    st.sampled_from(
        ["Forty", " two", "\n", "é思", "Here is my", GENERIC.thought_marker + SECRET, "Here",
         GENERIC.response_marker]
    ),
    max_size=8,
).map("".join)  # fmt: skip
QUESTION: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]


def script(answer: str, thought: str = THOUGHT) -> Any:
    """Thinks where its turn is empty, and answers behind a response marker."""
    return lambda prompt, _: thought if prompt.endswith("assistant\n") else answer


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> ScriptedEngine:
    return ScriptedEngine(tiny_model.write(tmp_path_factory.mktemp("tiny")), script(""))


@pytest.fixture(scope="module")
def url(postgres_url: str, redis_url: str, engine_url: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(app) as url:
        patch.setattr(serving_cache, "LOOK_SECONDS", 0.05)
        yield url


@pytest.fixture(scope="module")
def engine_url(scripted: ScriptedEngine) -> Iterator[str]:
    with running(scripted) as url:
        yield url


@pytest.fixture
def served(engine_url: str, url: str, clean_database: Engine) -> str:
    """The coordinator's address, which serves `demo@v1`."""
    with transaction() as session:
        id_ = factories.served(session, engine_url).id
    until(lambda: CACHE._served and CACHE._served.model.id == id_, "it serves")
    return url


@pytest.fixture
def client(served: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0)


def thought_tokens(answer: ChatCompletion) -> int | None:
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    return answer.usage.completion_tokens_details.reasoning_tokens


def streamed(client: openai.OpenAI, **request: Any) -> tuple[str, Any, str]:
    """(text, usage, finish reason) of a stream."""
    text, usage, reason = "", None, ""
    for chunk in client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        **request,
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    return text, usage, reason


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(answer=ANSWERS, limit=st.integers(1, 300))
def test_streamed_or_not_it_is_the_same_answer_without_a_thought(
    client: openai.OpenAI, scripted: ScriptedEngine, answer: str, limit: int
) -> None:
    scripted.script = script(answer)
    whole = client.chat.completions.create(
        model="demo", messages=QUESTION, seed=3, max_completion_tokens=limit
    )
    text, usage, reason = streamed(client, seed=3, max_completion_tokens=limit)
    [choice] = whole.choices
    assert text == choice.message.content
    assert (usage, reason) == (whole.usage, choice.finish_reason)
    assert SECRET not in whole.model_dump_json()
    assert SECRET not in text
    assert usage.completion_tokens <= limit
    assert not text[:1].isspace()


def test_no_byte_of_an_answer_holds_the_thought(served: str, scripted: ScriptedEngine) -> None:
    scripted.script = script(f"Forty two. {THOUGHT}Also 42.")
    for stream in (False, True):
        body = {"model": "demo@v1", "messages": QUESTION, "stream": stream}
        answer = httpx2.post(f"{served}/v1/chat/completions", json=body)
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
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ],
)
def test_a_bad_request_names_its_field(
    served: str, change: dict[str, Any], status: int, param: str
) -> None:
    body = {"model": "demo", "messages": QUESTION} | change
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error


def test_a_model_promoted_but_not_loaded_is_worth_waiting_for(served: str) -> None:
    with transaction() as session:
        factories.model(session, name="demo", version=2, promoted_at=func.now())
    body = {"model": "demo@v2", "messages": QUESTION}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "model_not_ready"


def test_nothing_served_is_said_so(served: str) -> None:
    with transaction() as session:
        session.execute(delete(Serving))
    until(lambda: CACHE._served is None, "the coordinator sees that")
    body = {"model": "demo", "messages": QUESTION}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert "promote one" in answer.json()["error"]["message"]
    assert httpx2.get(f"{served}/v1/models").json()["data"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_own_words_do_not_reach_a_client(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(scripted, "status", 500)
    body = {"model": "demo", "messages": QUESTION, "stream": stream}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body)
    assert "secret" not in answer.text
    assert "the model failed to answer" in answer.text


def test_a_stream_that_breaks_ends_in_an_error_event(
    client: openai.OpenAI, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = script("Forty two.")
    monkeypatch.setattr(scripted, "breaks_after", 3)
    with pytest.raises(openai.APIError, match="not ready"):
        streamed(client)


def test_a_client_that_leaves_frees_the_engine(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = script("word " * 500)
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    body = {"model": "demo", "messages": QUESTION, "stream": True, "reasoning_effort": "none"}
    aborted = scripted.aborted
    with httpx2.stream("POST", f"{served}/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"content":"w"' in line:
                break
    until(lambda: scripted.aborted == aborted + 1, "the engine's stream is aborted")
    until(lambda: chat.PLACES._taken == 0, "the place is free again")


def test_more_than_it_can_answer_are_sent_away(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.PLACES, "_taken", 10**6)
    body = {"model": "demo", "messages": QUESTION}
    answer = httpx2.post(f"{served}/v1/chat/completions", json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_a_format_without_thoughts_answers_at_once(
    client: openai.OpenAI, scripted: ScriptedEngine, served: str
) -> None:
    assert CACHE._served is not None
    with transaction() as session:
        model = factories.model(
            session,
            name="direct",
            thought_format=FORMATS["none"].model_dump(),
            id=(other := uuid.uuid4()),
        )
        session.query(Serving).update({Serving.model_id: model.id})
    until(lambda: CACHE._served and CACHE._served.model.id == other, "it serves the other")
    scripted.script = lambda *_: "Forty two."
    answer = client.chat.completions.create(model="direct", messages=QUESTION)
    assert answer.choices[0].message.content == "Forty two."
    assert thought_tokens(answer) == 0
