"""Chat's figures: how requests end, when the first token comes, what was thought and kept in."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from prometheus_client import REGISTRY

from services.chat import admission
from tests.services.chat.served import QUESTION, SECRET, THOUGHT, post, script
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

Values = dict[tuple[str, ...], float]
IN_FLIGHT = ("in_flight",)


def values() -> Values:
    """Value by sample's name and labels, of chat's own metrics."""
    return {
        (sample.name.removeprefix("forethought_chat_"), *sample.labels.values()): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("forethought_chat_") and not sample.name.endswith("_created")
    }


@contextmanager
def counted() -> Iterator[Values]:
    """What the block has added once its requests have ended; buckets left out."""
    added: Values = {}
    before = values()
    yield added
    until(lambda: values()[IN_FLIGHT] == 0, "no request is in flight")
    for key, value in values().items():
        if value != before[key] and not key[0].endswith("_bucket"):
            added[key] = value - before[key]


def test_a_stream_counts_its_first_token_and_its_tokens(
    served: str, scripted: ScriptedEngine
) -> None:
    scripted.script = script("Forty two.")
    with counted() as added:
        answer = post(served, stream=True, n=2, stream_options={"include_usage": True})
    [usage] = [line for line in answer.text.splitlines() if '"prompt_tokens"' in line]
    assert added.pop(("first_answer_token_seconds_sum",)) > 0
    assert added[("first_answer_token_seconds_count",)] == 1
    assert added[("thought_tokens_count",)] == 2
    assert f'"reasoning_tokens":{added[("thought_tokens_sum",)]:.0f}' in usage
    made = added[("thought_tokens_sum",)] + added[("answer_tokens_total",)]
    assert f'"completion_tokens":{made:.0f}' in usage
    assert added[("requests_total", "answered")] == 1


def test_the_first_token_comes_after_the_thought(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = script("Forty two.")
    monkeypatch.setattr(scripted, "token_seconds", 0.02)
    with counted() as added:
        post(served, stream=True)
    thought = added[("thought_tokens_sum",)] * 0.02
    assert added[("first_answer_token_seconds_sum",)] > thought > 0.1


def test_a_whole_answer_has_no_first_token(served: str, scripted: ScriptedEngine) -> None:
    scripted.script = script("Forty two.")
    with counted() as added:
        post(served)
    assert ("first_answer_token_seconds_count",) not in added
    assert added[("requests_total", "answered")] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_begun_in_an_answer_is_counted_and_not_shown(
    served: str, scripted: ScriptedEngine, stream: bool
) -> None:
    scripted.script = script(f"Forty. {THOUGHT}Two. {THOUGHT}")
    with counted() as added:
        answer = post(served, stream=stream)
    assert SECRET not in answer.text
    assert added[("leaks_blocked_total",)] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_cut_short_is_counted(
    served: str, scripted: ScriptedEngine, stream: bool
) -> None:
    scripted.script = script("42", f"{SECRET} " * 100)
    with counted() as added:
        post(served, stream=stream, max_thought_tokens=9)
    assert added[("thoughts_cut_total",)] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_refused_and_failed_are_told_apart(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with counted() as added:
        post(served, stream=stream, model="other")
    assert added == {("requests_total", "refused"): 1}
    with counted() as added, monkeypatch.context() as patch:
        patch.setattr(admission.LIMITER, "taken", 10**6)
        post(served, stream=stream)
    assert added == {("requests_total", "refused"): 1}
    monkeypatch.setattr(scripted, "status", 500)
    with counted() as added:
        post(served, stream=stream)
    assert added == {("requests_total", "failed"): 1}


def test_a_stream_that_breaks_has_failed(served: str, scripted: ScriptedEngine) -> None:
    scripted.script = script(Play("Forty two.", breaks_after=3))
    with counted() as added:
        assert post(served, stream=True).status_code == 200
    assert added[("requests_total", "failed")] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_no_failure(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    scripted.script = script("Forty two.", thought="word " * 200)
    monkeypatch.setattr(scripted, "token_seconds", 0.02)
    with counted() as added, pytest.raises(httpx2.ReadTimeout):
        post(served, stream=stream, timeout=0.5)
    assert added == {("requests_total", "left"): 1}


def test_requests_in_flight_are_shown(
    served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = script("word " * 50)
    monkeypatch.setattr(scripted, "token_seconds", 0.02)
    body = {"model": "demo", "messages": QUESTION, "stream": True}
    assert values()[IN_FLIGHT] == 0
    url = f"{served}/v1/chat/completions"
    with httpx2.stream("POST", url, json=body, headers=HEADERS) as answer:
        lines = answer.iter_lines()  # let go of, it would close the connection
        next(lines)
        assert values()[IN_FLIGHT] == 1
    until(lambda: values()[IN_FLIGHT] == 0, "the place is free again")
