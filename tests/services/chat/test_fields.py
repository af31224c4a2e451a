"""A request's fields, one by one: what each does, and which of the engine's requests it reaches."""

import json
from typing import Any

import httpx2
import openai
import pytest

from shared.thinking.formats import GENERIC
from tests.services.chat.served import QUESTION, THOUGHT, only_served, post, replace, script
from tests.support.access import HEADERS
from tests.support.scripted_engine import ScriptedEngine

EVENT = "data: "


@pytest.fixture(autouse=True)
def answering(scripted: ScriptedEngine) -> None:
    scripted.script = script("Forty two.")
    scripted.requests.clear()


def asked(scripted: ScriptedEngine) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Both of the engine's requests, and the prompt of the first."""
    thinking, answering = scripted.requests
    prompt = (
        scripted.prompt(thinking)
        if "messages" in thinking
        else scripted.tokenizer.decode(thinking["prompt"], skip_special_tokens=False)
    )
    return thinking, answering, prompt


def events(body: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix(EVENT) for line in body.splitlines() if line.startswith(EVENT)]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


class TestMessages:
    def test_a_developer_is_a_template_s_system(
        self, served: str, scripted: ScriptedEngine
    ) -> None:
        said = "Answer in capitals."
        assert post(served, messages=[{"role": "developer", "content": said}, *QUESTION]).is_success
        prompt = asked(scripted)[2]
        assert f"system\n{said}" in prompt
        assert "developer" not in prompt

    def test_parts_of_text_are_one_text(self, served: str, scripted: ScriptedEngine) -> None:
        parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " 17 + 25?"}]
        assert post(served, messages=[{"role": "user", "content": parts}]).is_success
        assert "What is 17 + 25?" in asked(scripted)[2]

    @pytest.mark.parametrize(
        "after",
        [
            {"role": "assistant", "content": "Let me see."},
            {"role": "assistant", "content": None},
            {"role": "system", "content": "Be brief."},
        ],
    )
    def test_the_question_need_not_be_last(
        self, served: str, scripted: ScriptedEngine, after: dict[str, Any]
    ) -> None:
        assert post(served, messages=[*QUESTION, after]).is_success
        prompt = asked(scripted)[2]
        assert prompt.index("thought process") < prompt.index(
            f"{after['role']}\n{after['content'] or ''}"
        )

    def test_the_system_alone_may_ask(self, served: str, scripted: ScriptedEngine) -> None:
        asks = "Write a poem."
        assert post(served, messages=[{"role": "system", "content": asks}]).is_success
        assert "thought process" in asked(scripted)[2]
        assert asks in asked(scripted)[2]

    @pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
    def test_other_parts_are_refused(self, served: str, kind: str) -> None:
        part = {"type": kind, kind: {"url": "data:image/png;base64,AA=="}}
        answer = post(served, messages=[{"role": "user", "content": [part]}])
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["param"] == "messages.0.content"
        assert "only parts of type text" in error["message"]

    @pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
    def test_thoughts_that_a_client_sends_back_are_dropped(
        self, served: str, scripted: ScriptedEngine, field: str
    ) -> None:
        earlier = {"role": "assistant", "content": "Hi.", field: "An old thought."}
        hello = {"role": "user", "content": "Hello?"}
        assert post(served, messages=[hello, earlier, *QUESTION]).is_success
        assert "Hi." in asked(scripted)[2]
        assert "An old thought." not in json.dumps(scripted.requests) + asked(scripted)[2]


class TestWhatIsHandedOn:
    def test_a_top_p_of_0_is_the_least_that_the_engine_takes(
        self, served: str, scripted: ScriptedEngine
    ) -> None:
        assert post(served, top_p=0).is_success
        assert all(0 < request["top_p"] < 1e-3 for request in asked(scripted)[:2])

    @pytest.mark.parametrize(
        "field",
        [
            {"include_reasoning": True},
            {"echo": True},
            {"prompt_logprobs": 5},
            {"return_token_ids": True},
            {"return_tokens_as_token_ids": True},
            {"return_prompt_text": True},
            {"skip_special_tokens": False},
            {"spaces_between_special_tokens": True},
            {"chat_template": "{{ messages }}"},
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"continue_final_message": True, "add_generation_prompt": False},
            {"stop_token_ids": [1]},
            {"bad_words": ["a"]},
            {"allowed_token_ids": [1]},
            {"ignore_eos": True},
            {"min_tokens": 50},
            {"priority": -1},
            {"kv_transfer_params": {"do_remote_decode": True}},
            {"vllm_xargs": {"a": 1}},
            {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
            {"verbosity": "low", "safety_identifier": "u", "prompt_cache_key": "k"},
            {"a_field_of_next_month": {"a": [1]}},
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_what_is_not_a_field_of_ours_changes_nothing(
        self, served: str, scripted: ScriptedEngine, field: dict[str, Any], stream: bool
    ) -> None:
        assert post(served, stream=stream, seed=1).is_success
        assert post(served, stream=stream, seed=1, **field).is_success
        first, second = scripted.requests[:2], scripted.requests[2:]
        assert first == second

    @pytest.mark.parametrize(
        "field",
        [
            {"frequency_penalty": 1.5},
            {"presence_penalty": -1.5},
            {"logit_bias": {"7": 5.0}},
            {"stop": ["x"]},
        ],
    )
    def test_what_binds_the_answer_leaves_the_thought_free(
        self, served: str, scripted: ScriptedEngine, field: dict[str, Any]
    ) -> None:
        assert post(served, **field).is_success
        thinking, answering, _ = asked(scripted)
        [(name, value)] = field.items()
        assert answering[name] == value
        assert thinking.get(name) in (None, 0, [GENERIC.response_marker])

    def test_the_newer_name_of_a_limit_counts(self, served: str) -> None:
        answer = post(served, max_completion_tokens=len(THOUGHT) + 20, max_tokens=1).json()
        assert answer["choices"][0]["message"]["content"] == "Forty two."
        answer = post(served, max_completion_tokens=1, max_tokens=len(THOUGHT) + 20).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 1

    def test_a_grammar_that_the_engine_refuses_is_named_in_a_stream(
        self, client: openai.OpenAI, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scripted, "refuses", "response_format")
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "A", "schema": {"type": "x"}}}
        with pytest.raises(openai.APIError, match="response_format: the engine cannot") as error:
            list(
                client.chat.completions.create(
                    model="demo", messages=QUESTION, response_format=wanted, stream=True
                )
            )
        assert error.value.param == "response_format"


class TestWhatIsSentBack:
    def test_a_streams_events_are_of_one_answer(self, served: str) -> None:
        body = post(served, n=2, stream=True, stream_options={"include_usage": True}).text
        chunks = events(body)
        for field in ("id", "object", "created", "model", "system_fingerprint"):
            assert len({chunk[field] for chunk in chunks}) == 1, field
        assert chunks[0]["object"] == "chat.completion.chunk"
        first = [chunk["choices"][0] for chunk in chunks[:2]]
        assert [choice["index"] for choice in first] == [0, 1]
        assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in first)
        *others, last = chunks
        assert last["choices"] == []
        assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in others)
        ends = [c["choices"][0]["finish_reason"] for c in others if c["choices"][0]["delta"] == {}]
        assert ends == ["stop", "stop"]

    def test_usage_is_sent_only_if_asked_for(self, served: str) -> None:
        assert all("usage" not in chunk for chunk in events(post(served, stream=True).text))

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_seed_repeats_both_phases(
        self, served: str, scripted: ScriptedEngine, stream: bool
    ) -> None:
        for seed in (5, 5, 6):
            assert post(served, seed=seed, stream=stream).is_success
        seeds = [request["seed"] for request in scripted.requests]
        assert seeds[:2] == seeds[2:4]
        assert all(a != b for a, b in zip(seeds[2:4], seeds[4:], strict=True))

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_fingerprint_is_the_model_s_version(
        self, served: str, engine_url: str, stream: bool
    ) -> None:
        expected = f"fp_{only_served().model.id.hex}"
        assert f'"system_fingerprint":"{expected}"' in post(served, stream=stream).text
        replace(engine_url)
        answer = post(served, model="other", stream=stream)
        assert answer.is_success
        assert expected not in answer.text

    def test_a_stream_is_not_to_be_kept_or_held_back(self, served: str) -> None:
        headers = post(served, stream=True).headers
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_request_s_id_comes_back(self, served: str, stream: bool) -> None:
        body = {"model": "demo", "messages": QUESTION, "stream": stream}
        url, sent = f"{served}/v1/chat/completions", {"x-request-id": "req-of-mine"}
        answer = httpx2.post(url, json=body, headers=HEADERS | sent)
        assert answer.headers["x-request-id"] == "req-of-mine"
        assert post(served, stream=stream).headers["x-request-id"].startswith("req_")
