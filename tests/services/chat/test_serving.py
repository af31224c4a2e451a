"""Which model answers, while models change."""

import time
from contextlib import ExitStack
from datetime import timedelta

import httpx2
import pytest
from sqlalchemy import delete, func, update
from sqlalchemy.exc import TimeoutError as PoolIsFull

from services.chat import admission, served_model
from services.chat import serving as serving_cache
from services.chat.serving import CACHE
from shared.db.engine import get_engine, transaction
from shared.db.tables import Model, Serving
from shared.thinking.formats import GENERIC
from tests.services.chat.served import THOUGHT, Asked, replace, script, thinks
from tests.support import factories
from tests.support.access import HEADERS
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until


@pytest.fixture
def slow(scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Writes a hundred tokens a second."""
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    scripted.requests.clear()
    return scripted


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


@pytest.mark.parametrize(
    ("replacement", "asked", "status"),
    [
        (("other", 1), "demo", 404),
        (("demo", 2), "demo@v1", 404),
        (("demo", 2), "demo", 200),
        (("demo", 2), "demo@v2", 200),
    ],
)
def test_an_earlier_model_is_not_found(
    served: str,
    slow: ScriptedEngine,
    engine_url: str,
    replacement: tuple[str, int],
    asked: str,
    status: int,
) -> None:
    slow.script = script("Forty two.")
    replace(engine_url, *replacement)
    answer = Asked(served, model=asked).answered()
    assert answer.status_code == status
    if status == 404:
        assert answer.json()["error"]["code"] == "model_not_found"
    else:
        assert answer.json()["model"] == "demo@v2"


def test_a_client_that_waits_for_a_thought_hears_of_it(
    served: str, slow: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PING_SECONDS", 0.1)
    slow.script = script("Forty two.")
    lines = Asked(served, stream=True).answered().text.split("\n\n")
    first_ping, first_text = (
        lines.index(": ping"),
        next(at for at, line in enumerate(lines) if '"content":"F' in line),
    )
    assert '"role":"assistant"' in lines[0]
    assert 0 < first_ping < first_text


@pytest.fixture
def blind(served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """An engine that has the weights of `demo`, behind a coordinator whose looks all fail."""

    def full() -> None:
        raise PoolIsFull("QueuePool limit reached")  # SQLAlchemy's, and no DBAPIError

    monkeypatch.setattr(served_model, "read_serving", full)
    monkeypatch.setattr(serving_cache, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(scripted, "label", scripted.label)  # put back afterwards
    scripted.requests.clear()
    return scripted


@pytest.mark.parametrize("stream", [False, True])
def test_chat_goes_on_while_looks_fail(served: str, blind: ScriptedEngine, stream: bool) -> None:
    blind.script = script("Forty two.")
    answer = Asked(served, stream=stream).answered()
    assert answer.status_code == 200
    assert "error" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("in_its_thought", [False, True])
def test_a_swap_that_no_look_has_seen_is_found_out(
    served: str, blind: ScriptedEngine, in_its_thought: bool, stream: bool
) -> None:
    def write(prompt: str, _: int) -> str:
        if thinks(prompt) == in_its_thought:
            blind.label = "of another model"
        return THOUGHT if thinks(prompt) else "Forty two."

    blind.script = write
    answer = Asked(served, stream=stream).answered()
    assert answer.status_code == (200 if stream else 503)
    assert '"code":"model_replaced"' in answer.text
    assert "two" not in answer.text
    assert len(blind.requests) == (1 if in_its_thought else 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("in_its_thought", [False, True])
def test_a_phase_that_is_late_at_the_engine_is_found_out(
    served: str,
    blind: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    in_its_thought: bool,
    stream: bool,
) -> None:
    """It was sent soon after a look, and has waited there until another model had its place."""

    def write(prompt: str, _: int) -> str:
        if thinks(prompt) == in_its_thought:
            monkeypatch.setattr(serving_cache, "FRESH_SECONDS", 0.0)
            blind.label = "of another model"
        return THOUGHT if thinks(prompt) else "Forty two."

    blind.script = write
    monkeypatch.setattr(serving_cache, "FRESH_SECONDS", 1e6)
    answer = Asked(served, stream=stream).answered()
    assert '"code":"model_replaced"' in answer.text
    assert "two" not in answer.text


def test_looks_go_on_after_they_have_failed(
    blind: ScriptedEngine, engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = CACHE._refreshed_at
    monkeypatch.undo()
    monkeypatch.setattr(serving_cache, "POLL_INTERVAL_S", 0.05)
    until(lambda: CACHE._refreshed_at > seen, "it looks again")


def test_a_name_that_cannot_be_looked_up_is_not_said_to_be_unknown(
    served: str, blind: ScriptedEngine
) -> None:
    answer = Asked(served, model="other").answered()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_away")
    assert int(answer.headers["retry-after"]) > 0


def test_one_look_serves_all_that_wait_for_one(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or names that nobody knows, which anybody may ask for, would each cost a query."""
    looks, read = [], served_model.read_serving

    def counted() -> served_model.Snapshot:
        looks.append(1)
        time.sleep(0.2)
        return read()

    monkeypatch.setattr(served_model, "read_serving", counted)
    answers = [one.answered() for one in [Asked(served, model="nobody") for _ in range(20)]]
    assert {answer.status_code for answer in answers} == {404}
    assert len(looks) <= 8


def test_looks_do_not_queue_for_the_pool(served: str) -> None:
    with ExitStack() as taken:
        for _ in range(20):
            taken.enter_context(get_engine().connect())
        seen = CACHE._refreshed_at
        until(lambda: CACHE._refreshed_at > seen, "it looks", 5)


def why_not(url: str) -> str:
    until(lambda: not CACHE._served, "the coordinator sees that")
    answer = Asked(url).answered()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("starting", "demo@v1 is being loaded; retry shortly"),
        ("failed", "demo@v1 failed to load and will be tried again: exited with 1"),
    ],
)
def test_a_long_start_is_told_from_no_promotion(served: str, state: str, said: str) -> None:
    """A start takes minutes, and the inference process does not renew its row meanwhile."""
    values = {"state": state, "model_id": None, "detail": "exited with 1"}
    with transaction() as session:
        session.execute(update(Model).values(promoted_at=func.now() - timedelta(hours=2)))
        long_ago = func.now() - timedelta(hours=1)
        session.execute(update(Serving).values(**values, updated_at=long_ago))
    assert why_not(served) == said


def test_a_failure_of_an_earlier_model_is_not_that_of_the_next(served: str) -> None:
    with transaction() as session:
        session.execute(update(Serving).values(state="failed", updated_at=func.now()))
        factories.model(session, name="next", promoted_at=func.now() + timedelta(seconds=1))
    until(lambda: "next" in CACHE._promoted, "the promotion is seen")
    assert why_not(served) == "next@v1 is being loaded; retry shortly"


def test_nothing_promoted_is_said_so(served: str) -> None:
    with transaction() as session:
        session.execute(delete(Serving))
        session.execute(update(Model).values(promoted_at=None))
    until(lambda: not CACHE._promoted, "the coordinator sees that")
    assert "promote one" in why_not(served)
    assert httpx2.get(f"{served}/v1/models", headers=HEADERS).json()["data"] == []


def test_a_checkpoint_without_a_name_stops_no_looking(served: str) -> None:
    with transaction() as session:
        session.execute(update(Model).values(name=None, version=None))
    assert "has no name" in why_not(served)
