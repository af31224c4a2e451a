"""Several engines behind chat: replicas of one model, and models beside one another."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import httpx2
import pytest
from sqlalchemy import func, update

from services.chat.serving import CACHE
from shared.db.engine import transaction
from shared.db.tables import Model, Serving
from tests.services.chat.served import THOUGHT, Asked, post, script, thinks
from tests.support import factories, tiny_model
from tests.support.access import HEADERS
from tests.support.scripted_engine import ScriptedEngine, running
from tests.support.waiting import until


class Replica:
    """A second engine, which a test may stop."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self._server = ExitStack()
        self.url = self._server.enter_context(running(engine))

    def stop(self) -> None:
        self._server.close()


@pytest.fixture
def first(served: str, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The engine that serves `demo@v1` already. It writes a hundred tokens a second."""
    monkeypatch.setattr(scripted, "token_seconds", 0.01)
    scripted.script = script("Forty two.", THOUGHT * 2)
    scripted.requests.clear()
    return scripted


@pytest.fixture
def second(first: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Another engine with the same model."""
    folder = tiny_model.write(tmp_path_factory.mktemp("second"))
    replica = Replica(
        ScriptedEngine(folder, first.script, label=factories.WEIGHTS, token_seconds=0.01)
    )
    with transaction() as session:
        add_row(replica.url, session.query(Model).one())
    until(lambda: len(CACHE._served) == 2, "both engines are known")
    yield replica
    replica.stop()


def add_row(url: str, model: Model) -> None:
    with transaction() as session:
        for_long = func.now() + timedelta(days=1)
        row = Serving(engine_url=url, model_id=model.id, state="ready", updated_at=for_long)
        session.add(row)


def set_row(url: str, **values: object) -> None:
    with transaction() as session:
        session.execute(update(Serving).where(Serving.engine_url == url).values(**values))


def ask(url: str, number: int, **fields: object) -> Asked:
    """A question that can be found in the engines' prompts."""
    question = [{"role": "user", "content": f"Question number {number}."}]
    return Asked(url, messages=question, **fields)


def numbers(engine: ScriptedEngine, *, thinking: bool) -> list[int]:
    """Numbers of the questions that an engine has thought about, or has answered."""
    prompts = [
        engine.prompt(body)
        if "messages" in body
        else engine.tokenizer.decode(body["prompt"], skip_special_tokens=False)
        for body in engine.requests
    ]
    return sorted(
        int(prompt.partition("Question number ")[2].partition(".")[0])
        for prompt in prompts
        if thinks(prompt) == thinking
    )


def test_both_replicas_are_used_and_a_request_stays_on_one(
    served: str, first: ScriptedEngine, second: Replica
) -> None:
    asked = [ask(served, number, stream=bool(number % 2)) for number in range(10)]
    assert [one.answered().status_code for one in asked] == [200] * 10
    shares = []
    for engine in (first, second.engine):
        assert numbers(engine, thinking=True) == numbers(engine, thinking=False)
        shares.append(len(numbers(engine, thinking=True)))
    assert sum(shares) == 10
    assert min(shares) >= 4, f"requests go to the engine with the least to do: {shares}"


def test_a_busy_engine_is_spared(served: str, first: ScriptedEngine, second: Replica) -> None:
    second.engine.script = script("word " * 150, THOUGHT)
    first.script = script("Forty two.", THOUGHT)
    asked = [ask(served, number) for number in range(2)]
    until(lambda: numbers(second.engine, thinking=False), "the second engine is busy")
    until(lambda: not all(one.is_alive() for one in asked), "the first engine has answered")
    for number in (2, 3, 4):
        assert ask(served, number).answered().status_code == 200
    assert len(numbers(second.engine, thinking=True)) == 1
    assert [one.answered().status_code for one in asked] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_row_that_is_renewed_replaces_no_model(
    served: str, first: ScriptedEngine, second: Replica, engine_url: str, stream: bool
) -> None:
    asked = [ask(served, number, stream=stream) for number in range(6)]
    while any(one.is_alive() for one in asked):
        for url in (engine_url, second.url):
            set_row(url, updated_at=func.clock_timestamp() + timedelta(days=1))
            time.sleep(0.06)
    for one in asked:
        assert "model_replaced" not in one.answer.text
        assert one.answer.status_code == 200


def test_an_engine_that_dies_costs_what_it_had_under_way_only(
    served: str, first: ScriptedEngine, second: Replica
) -> None:
    under_way = [ask(served, number) for number in range(4)]
    until(lambda: second.engine.requests and first.requests, "both have work")
    second.stop()
    answers = {one.answered().status_code for one in under_way}
    assert answers <= {200, 503}, "what it had under way is to be asked again"

    later = [ask(served, number, stream=bool(number % 2)) for number in range(10, 20)]

    assert [one.answered().status_code for one in later] == [200] * 10
    assert set(range(10, 20)) <= set(numbers(first, thinking=False))
    assert len(CACHE._served) == 2, "its row has not told of it yet"


def test_an_engine_whose_row_is_stale_is_left_out(
    served: str, first: ScriptedEngine, second: Replica
) -> None:
    set_row(second.url, updated_at=func.now() - timedelta(minutes=2))
    until(lambda: len(CACHE._served) == 1, "it is left out")
    asked = [ask(served, number) for number in range(4)]
    assert [one.answered().status_code for one in asked] == [200] * 4
    assert second.engine.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_one_is_swapped_while_the_other_serves(
    served: str, first: ScriptedEngine, second: Replica, stream: bool
) -> None:
    asked = [ask(served, number, stream=stream) for number in range(4)]
    until(lambda: len(numbers(second.engine, thinking=True)) == 2, "both think")
    set_row(second.url, state="swapping", model_id=None)
    until(lambda: len(CACHE._served) == 1, "the swap is seen")
    refused = ["model_replaced" in one.answered().text for one in asked]
    assert sum(refused) == 2, "a thought of the model that goes is continued nowhere"
    assert numbers(second.engine, thinking=False) == []

    later = [ask(served, number, stream=stream) for number in range(4, 8)]

    assert [one.answered().status_code for one in later] == [200] * 4
    assert len(numbers(second.engine, thinking=True)) == 2


def test_another_model_stands_beside(served: str, first: ScriptedEngine, second: Replica) -> None:
    with transaction() as session:
        other = factories.model(session, name="other", weights_sha256="1" * 64)
    second.engine.label = "1" * 64
    second.engine.script = lambda *_: "I am another."
    set_row(second.url, model_id=other.id)
    until(lambda: "other" in CACHE.models, "both are served")
    for _ in range(2):
        assert "Forty two." in post(served, model="demo").text
        assert "I am another." in post(served, model="other@v1").text
    unknown = post(served, model="neither").json()["error"]["message"]
    assert unknown.endswith("demo@v1, other@v1")
    listed = httpx2.get(f"{served}/v1/models", headers=HEADERS).json()["data"]
    assert [row["id"] for row in listed] == ["demo@v1", "demo", "other@v1", "other"]


def test_a_name_alone_is_the_version_promoted_last(
    served: str, first: ScriptedEngine, second: Replica
) -> None:
    """Engines are swapped one after another; a client must not get both versions in turn."""
    with transaction() as session:
        later = func.now() + timedelta(seconds=1)
        newer = factories.model(session, name="demo", version=2, promoted_at=later)
    set_row(second.url, model_id=newer.id)
    until(lambda: "demo@v2" in CACHE.models, "both are served")
    assert [post(served, model="demo").json()["model"] for _ in range(3)] == ["demo@v2"] * 3
    assert post(served, model="demo@v1").json()["model"] == "demo@v1"
