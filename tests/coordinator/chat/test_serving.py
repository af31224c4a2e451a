"""Which model answers, while models change."""

import threading
from typing import Any

import httpx2
import pytest

from services.coordinator.chat import admission
from shared.db import transaction
from shared.formats import GENERIC
from shared.models import Serving
from tests.coordinator.chat.served import QUESTION, THOUGHT, script, serve
from tests.scripted_engine import ScriptedEngine
from tests.waiting import until


class Asked(threading.Thread):
    """A request under way in a thread."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__()
        self.url = f"{url}/v1/chat/completions"
        self.body = {"model": "demo", "messages": QUESTION, "seed": 1} | fields
        self.start()

    def run(self) -> None:
        self.answer = httpx2.post(self.url, json=self.body, timeout=60)

    def answered(self) -> httpx2.Response:
        self.join()
        return self.answer


@pytest.fixture
def slow(scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Writes a hundred tokens a second."""
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    scripted.requests.clear()
    return scripted


def replace(engine_url: str) -> None:
    """Another model takes the place of `demo`."""
    with transaction() as session:
        session.query(Serving).delete()
    serve(engine_url, GENERIC, name="other")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_between_its_phases_is_not_finished_by_another_model(
    served: str, slow: ScriptedEngine, engine_url: str, stream: bool
) -> None:
    slow.script = script("Forty two.", THOUGHT * 2)
    asked = Asked(served, stream=stream)
    until(lambda: slow.requests, "it thinks")
    replace(engine_url)

    answer = asked.answered()

    assert answer.status_code == (200 if stream else 503)
    assert '"code":"model_replaced"' in answer.text
    assert len(slow.requests) == 1, "nobody answers behind another's thought"


def test_an_answer_that_has_begun_comes_to_its_end(
    served: str, slow: ScriptedEngine, engine_url: str
) -> None:
    slow.script = script("word " * 40, GENERIC.response_marker)
    asked = Asked(served, stream=True)
    until(lambda: len(slow.requests) == 2, "it answers")
    replace(engine_url)

    answer = asked.answered()

    assert answer.text.endswith("data: [DONE]\n\n")
    assert '"model":"demo@v1"' in answer.text
    assert "other" not in answer.text


def test_an_earlier_model_is_not_found(served: str, engine_url: str) -> None:
    replace(engine_url)
    answer = Asked(served).answered()
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_client_that_waits_for_a_thought_hears_of_it(
    served: str, slow: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PING_SECONDS", 0.1)
    slow.script = script("Forty two.")
    lines = Asked(served, stream=True).answered().text.split("\n\n")
    first_ping, first_text = (
        lines.index(": ping"),
        next(at for at, line in enumerate(lines) if '"content":"F"' in line),
    )
    assert '"role":"assistant"' in lines[0]
    assert 0 < first_ping < first_text
