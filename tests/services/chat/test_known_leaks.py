"""Each way in which others have leaked thoughts: a test for each, with the issues that tell it."""

from typing import Any

import httpx2
import openai
import pytest

from shared.thinking.formats import GENERIC, NONE, SPECIFIC, THINK, ThoughtFormat
from tests.services.chat.served import QUESTION, SECRET, THOUGHT, script
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play
from tests.support.scripted_engine import ScriptedEngine

MARK = GENERIC.response_marker


def both(url: str, **fields: Any) -> list[str]:
    """The bodies of the answer, whole and streamed, of which none may hold the secret."""
    bodies = []
    for stream in (False, True):
        body = {"model": "demo", "messages": QUESTION, "seed": 1, "stream": stream} | fields
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS)
        assert SECRET not in answer.text + str(answer.headers)
        bodies.append(answer.text)
    return bodies


def text(client: openai.OpenAI, **fields: Any) -> str:
    """The content, which is the same streamed and not."""
    request: dict[str, Any] = {"model": "demo", "messages": QUESTION, "seed": 1} | fields
    whole: str | None = client.chat.completions.create(**request).choices[0].message.content
    chunks = client.chat.completions.create(**request, stream=True)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert whole == streamed
    assert whole is not None
    assert SECRET not in whole
    return whole


def test_markers_are_not_streamed_as_content(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """vllm #46042, #45687"""
    scripted.script = script(f"4{THOUGHT}2")
    assert text(client) == "4\n2"


def test_nothing_leaks_after_a_tool_result(
    served: str, client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """vllm #39885"""
    scripted.script = script("It is 42.")
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    tool = {"type": "function", "function": {"name": "add"}}
    both(served, messages=messages, tools=[tool])
    assert text(client, messages=messages, tools=[tool]) == "It is 42."


def test_markers_need_not_be_special_tokens(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """vllm PR #45609"""
    scripted.script = script("42", f"plain {SECRET} text {MARK}")
    assert text(client) == "42"


def test_a_stop_string_that_is_held_back_does_not_show_the_thoughts_end(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """vllm #51641, PR #38864"""
    scripted.script = script(Play("4 2 thus", tokens_an_event=(3, 1)), f"{SECRET} thus {MARK}")
    assert text(client, stop=[" thus", " response"]) == "4 2"


def test_a_stop_string_does_not_end_the_thought(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """vllm #14170, #38499, PR #14550; lm-eval PR #3700"""
    scripted.script = script("42", f"{SECRET}\n\nSo: {SECRET} {MARK}")
    assert text(client, stop=["\n\n", "So"]) == "42"


def test_logprobs_are_those_of_the_answer(served: str, scripted: ScriptedEngine) -> None:
    """vllm #57935"""
    scripted.script = script(f"42 {GENERIC.thought_marker} {SECRET}{MARK} 43")
    whole, _ = both(served, logprobs=True, top_logprobs=2)
    for hidden in ('"S"', '"E"', "token_ids", "prompt_logprobs"):
        assert hidden not in whole
    assert '"token":"4"' in whole


def test_a_truncated_thought_is_no_content(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    """vllm #35221, PR #35296; Rapid-MLX #575; omlx #2606"""
    scripted.script = script("42", f"{SECRET} " * 100)
    for limit in range(1, 12):
        answer = client.chat.completions.create(
            model="demo", messages=QUESTION, max_completion_tokens=limit
        )
        assert SECRET[:3] not in answer.model_dump_json()
    assert text(client, extra_body={"max_thought_tokens": 9}) == "42"


def test_a_budgets_end_string_is_not_shown(client: openai.OpenAI, scripted: ScriptedEngine) -> None:
    """vllm #39697"""
    scripted.script = script("42", f"{SECRET} " * 100)
    assert text(client, extra_body={"max_thought_tokens": 20}) == "42"


def test_a_thought_that_goes_on_behind_its_budget_is_not_shown(
    served: str, client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    scripted.script = script(f"and {SECRET} again {MARK} 42", f"{SECRET} " * 100)
    both(served, max_thought_tokens=20)
    assert text(client, extra_body={"max_thought_tokens": 20}) == "42"


@pytest.mark.parametrize("thought", [f"{SECRET}", f"{MARK}", "", f"{MARK} {SECRET}"])
def test_an_end_without_a_marker_or_a_marker_alone(
    client: openai.OpenAI, scripted: ScriptedEngine, thought: str
) -> None:
    """sglang PR #36285, PR #37644"""
    scripted.script = script("42", thought)
    assert text(client) == "42"


class TestNativeThinking:
    @pytest.fixture
    def fmt(self) -> ThoughtFormat:
        return THINK

    def test_no_tag_is_left_in_content(
        self, client: openai.OpenAI, scripted: ScriptedEngine
    ) -> None:
        """litellm #26326, #15233; exo #1054"""
        scripted.script = script(f"42<think>{SECRET}</think> it is", f"{SECRET}</think>")
        assert text(client) == "42 it is"

    def test_both_tags_in_one_chunk(self, client: openai.OpenAI, scripted: ScriptedEngine) -> None:
        """litellm PR #14121"""
        answer = Play(f"4<think>{SECRET}</think>2<think>{SECRET}</think>", tokens_an_event=(999,))
        scripted.script = script(answer, f"{SECRET}</think>")
        assert text(client) == "42"


class TestSpecific:
    @pytest.fixture
    def fmt(self) -> ThoughtFormat:
        return SPECIFIC

    def test_what_a_model_thinks_natively_is_hidden_as_well(
        self, client: openai.OpenAI, scripted: ScriptedEngine
    ) -> None:
        """Whatever its format asks for: litellm #26326."""
        scripted.script = script(f"<think>{SECRET}</think>4<THINK>{SECRET}</THINK>2", "<R>")
        assert text(client) == "42"

    def test_an_end_mark_in_the_answer_stays_there(
        self, client: openai.OpenAI, scripted: ScriptedEngine
    ) -> None:
        """vllm PR #53924"""
        scripted.script = script("The mark is <R>, not <r>.", f"{SECRET} <R>")
        assert text(client) == "The mark is <R>, not <r>."


class TestDirect:
    @pytest.fixture
    def fmt(self) -> ThoughtFormat:
        return NONE

    def test_a_direct_answer_hides_a_thought(
        self, client: openai.OpenAI, scripted: ScriptedEngine
    ) -> None:
        """Of a model that was registered as one that does not think: litellm #26326."""
        scripted.script = lambda *_: f"<think>{SECRET}</think>\n\n42"
        assert text(client) == "42"


def test_a_budget_eaten_by_the_thought_is_said_so(
    client: openai.OpenAI, scripted: ScriptedEngine
) -> None:
    """ollama #15288; OpenAI's forum, 1359002"""
    scripted.script = script("42", f"{SECRET} " * 100)
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, max_completion_tokens=1
    )
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1
    assert answer.usage.completion_tokens == 1
