"""Chat with the real small model on real vLLM, by the clients that people use."""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import psutil
import pytest
from pydantic import BaseModel

from tests.real.asking import ASK, answers
from tests.support.access import HEADERS
from tests.support.platform import Platform
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(real: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.stack.url}/v1", api_key=real.stack.key) as client:
        yield client


def test_a_seed_repeats_the_answer_streamed_or_not(client: openai.OpenAI) -> None:
    # The first fills the prefix cache: what is computed anew may round otherwise.
    _, *whole = [client.chat.completions.create(**ASK) for _ in range(3)]
    chunks = list(
        client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    )
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert {answer.choices[0].message.content for answer in whole} == {streamed}
    usage = chunks[-1].usage
    assert usage == whole[0].usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert 0 < (usage.completion_tokens_details.reasoning_tokens or 0) <= 24
    assert usage.completion_tokens <= 48
    assert "thought process" not in streamed


def test_several_at_once_by_the_async_client(real: Platform) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{real.stack.url}/v1", api_key=real.stack.key
        ) as client:
            asks = (
                client.chat.completions.create(**ASK | {"n": 2, "max_tokens": 16}) for _ in range(4)
            )
            return await asyncio.gather(*asks)

    for answer in asyncio.run(ask()):
        assert len(answer.choices) == 2
        assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)


class Fruit(BaseModel):
    ripe: bool
    pieces: int


def test_an_answer_is_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**ASK | {"max_tokens": 120}, response_format=Fruit)
    assert isinstance(answer.choices[0].message.parsed, Fruit)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(client: openai.OpenAI, stream: bool) -> None:
    parameters = {
        "type": "object",
        "properties": {"ripe": {"type": "boolean"}},
        "required": ["ripe"],
        "additionalProperties": False,
    }
    tools: list[Any] = [
        {"type": "function", "function": {"name": "pick", "parameters": parameters}}
    ]
    request = ASK | {"max_tokens": 120, "tools": tools, "tool_choice": "required"}
    request |= {"parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**request) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**request).choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name == "pick"
    assert isinstance(json.loads(call.function.arguments)["ripe"], bool)
    assert choice.finish_reason == "tool_calls"


def test_logprobs_are_those_of_the_answers_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    rows = logprobs.content or []
    text = "".join(row.token for row in rows)
    assert text.strip() == (answer.choices[0].message.content or "").strip()
    assert all(row.logprob <= 0 and len(row.top_logprobs) == 2 for row in rows)


def test_what_cannot_be_done_is_named(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASK | {"messages": long})
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "no such type"}},
    }
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASK, response_format=schema)
    assert error.value.param == "response_format"


def test_a_response_is_streamed(client: openai.OpenAI) -> None:
    *events, last = client.responses.create(
        model="thinker",
        input="Name a fruit.",
        reasoning={"effort": "low"},
        max_output_tokens=40,
        stream=True,
    )
    assert last.type in ("response.completed", "response.incomplete")
    response = last.response
    deltas = (e.delta for e in events if e.type == "response.output_text.delta")
    assert "".join(deltas) == response.output_text != ""
    assert response.usage is not None
    assert 0 < response.usage.output_tokens_details.reasoning_tokens <= 6


def test_langchain_and_litellm_see_the_answer_alone(real: Platform) -> None:
    command = [ROOT / ".venv-clients" / "bin" / "python", ROOT / "tests" / "clients" / "others.py"]
    done = subprocess.run(
        [*command, f"{real.stack.url}/v1", real.stack.key],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, seen in json.loads(done.stdout.splitlines()[-1]).items():
        assert seen["whole"], name
        assert seen["whole"] == seen["streamed"], name
        assert 0 < seen["reasoning"] <= 24, name
        assert "thought process" not in seen["everything"], name


def engine_url(real: Platform) -> str:
    [[url]] = real.sql("SELECT engine_url FROM serving")
    return str(url)


def running(url: str) -> float:
    """Requests that vLLM itself says it is working on."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


@pytest.mark.parametrize(
    "phase", [{"max_thought_tokens": 400}, {"reasoning_effort": "none"}], ids=["thought", "answer"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine_within_a_second(
    real: Platform, stream: bool, phase: dict[str, Any]
) -> None:
    engine = engine_url(real)
    body = ASK | {"max_tokens": 900, "stream": stream} | phase
    body |= {"messages": [{"role": "user", "content": "Write a long story."}]}

    async def ask() -> None:
        async with (
            aiohttp.ClientSession(headers=HEADERS) as http,
            http.post(f"{real.stack.url}/v1/chat/completions", json=body) as answer,
        ):
            await answer.read()

    async def ask_and_leave() -> None:
        asking = asyncio.create_task(ask())
        await asyncio.to_thread(until, lambda: running(engine) == 1, "the engine is at it", 20)
        asking.cancel()

    asyncio.run(ask_and_leave())
    left = time.monotonic()
    until(lambda: running(engine) == 0, "the engine is idle", 10)
    assert time.monotonic() - left < 1


def test_an_engine_that_hangs_is_replaced(real: Platform, client: openai.OpenAI) -> None:
    ours = psutil.Process().children(recursive=True)
    cores = [p for p in ours if p.name().startswith("VLLM::")]
    assert cores
    began = time.monotonic()
    for core in cores:
        core.send_signal(signal.SIGSTOP)
    assert httpx2.get(f"{engine_url(real)}/health").status_code == 200

    def refused() -> bool:
        body = ASK | {"max_tokens": 2}
        try:
            url = f"{real.stack.url}/v1/chat/completions"
            answer = httpx2.post(url, json=body, headers=HEADERS, timeout=1)
        except httpx2.ReadTimeout:
            return False
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        return True

    until(refused, "chat says that there is no model", 30)
    assert time.monotonic() - began < 30
    until(lambda: answers(real), "another engine serves", 240)
