"""One contract for generate, judge and train: submit, repeat, read, list, cancel, resume."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

import services.generate.app
import services.judge.app
import services.train.app
from shared.db import transaction
from tests import factories

PROMPT = {"text": "Name a river."}
PAIR = {"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": "Paris."}


@dataclass(frozen=True)
class Case:
    app: FastAPI
    create: str
    body: Callable[[], dict[str, Any]]
    change: dict[str, Any]
    """What makes it another body."""


CASES = {
    "generate": Case(
        services.generate.app.app,
        "/generate",
        lambda: {"model": "seed", "prompts": [PROMPT] * 40},
        {"prompts": [PROMPT] * 41},
    ),
    "judge": Case(
        services.judge.app.app,
        "/judge",
        lambda: {"items": [{"instruction": "Say a", "response": "a"}], "judge": {}},
        {"items": [{"instruction": "Say b", "response": "b"}]},
    ),
    "train": Case(
        services.train.app.app,
        "/train",
        lambda: {"model": "seed", "pairs": [PAIR]},
        {"pairs": [PAIR, PAIR]},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, clean_database: Engine, redis_url: str) -> Case:
    with transaction() as session:
        factories.model(session)
    return CASES[request.param]


@pytest.fixture
def client(case: Case) -> TestClient:
    return TestClient(case.app, raise_server_exceptions=False)


def test_a_job_is_accepted_read_listed_and_cancelled(case: Case, client: TestClient) -> None:
    job = client.post(case.create, json=case.body())
    assert job.status_code == 202, job.text
    body = job.json()
    assert (body["status"], body["progress"]["done"]) == ("queued", 0)
    assert client.get(f"/jobs/{body['id']}").json() == body
    assert [j["id"] for j in client.get("/jobs").json()["data"]] == [body["id"]]
    for _ in range(2):
        cancelled = client.post(f"/jobs/{body['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    resumed = client.post(f"/jobs/{body['id']}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")


def test_a_callers_id_makes_a_repeat_find_the_same_job(case: Case, client: TestClient) -> None:
    url, body = f"/jobs/{uuid.uuid4()}", case.body()
    first, second = client.put(url, json=body), client.put(url, json=body)
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert len(client.get("/jobs").json()["data"]) == 1


def test_a_key_makes_a_repeated_post_find_the_same_job(case: Case, client: TestClient) -> None:
    headers, body = {"Idempotency-Key": "once"}, case.body()
    first = client.post(case.create, json=body, headers=headers)
    again = client.post(case.create, json=body, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert len(client.get("/jobs").json()["data"]) == 1
    other = client.post(case.create, json=body | case.change, headers=headers)
    assert (other.status_code, other.json()["error"]["param"]) == (422, "Idempotency-Key")


def test_an_unknown_field_is_named(case: Case, client: TestClient) -> None:
    answer = client.post(case.create, json=case.body() | {"temprature": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temprature"


def test_an_unknown_job_is_404_in_the_envelope(case: Case, client: TestClient) -> None:
    for answer in (
        client.get(f"/jobs/{uuid.uuid4()}"),
        client.post(f"/jobs/{uuid.uuid4()}/cancel"),
    ):
        assert answer.status_code == 404
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_pages_continue_after_their_last_id(case: Case, client: TestClient) -> None:
    ids = [client.post(case.create, json=case.body()).json()["id"] for _ in range(3)]
    first = client.get("/jobs", params={"limit": 2}).json()
    rest = client.get("/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [j["id"] for j in first["data"] + rest["data"]] == ids[::-1]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/generate", {"model": "nobody", "prompts": [PROMPT]}, "model"),
        ("/generate", {"model": "seed"}, "prompts"),
        ("/generate", {"model": "seed", "prompts": [{"text": ""}]}, "prompts.0.text"),
        ("/generate", {"model": "seed", "prompts": [{"text": "a\x00b"}]}, "prompts.0.text"),
        (
            "/generate",
            {"model": "seed", "prompts": [PROMPT], "thought_format": "loud"},
            "thought_format",
        ),
        (
            "/generate",
            {"model": "seed", "prompts": [PROMPT], "sampling": {"samples": 0}},
            "sampling.samples",
        ),
        ("/generate", {"model": "seed", "iteration_id": str(uuid.uuid4())}, "iteration_id"),
        ("/judge", {"items": [], "judge": {}}, "items"),
        (
            "/judge",
            {"items": [{"instruction": "a", "response": "b"}], "judge": {"kind": "oracle"}},
            "judge.kind",
        ),
        ("/judge", {"generate_job_id": str(uuid.uuid4())}, "generate_job_id"),
        (
            "/train",
            {"model": "seed", "pairs": [PAIR | {"rejected": PAIR["chosen"]}]},
            "pairs.0.rejected",
        ),
        (
            "/train",
            {"model": "seed", "pairs": [PAIR], "training": {"beta": 0}},
            "training.beta",
        ),
    ],
)
def test_bad_input_names_its_field(
    clean_database: Engine, redis_url: str, path: str, body: dict[str, Any], param: str
) -> None:
    with transaction() as session:
        factories.model(session)
    app = CASES[path.removeprefix("/")].app
    answer = TestClient(app, raise_server_exceptions=False).post(path, json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


def test_a_model_registers_in_a_job_and_serves_only_once_ready(
    clean_database: Engine, redis_url: str
) -> None:
    client = TestClient(services.train.app.app, raise_server_exceptions=False)
    model = client.post("/models", json={"name": "tiny", "source": "bundled"}).json()
    assert (model["ref"], model["status"]) == ("tiny@v1", "registering")
    assert client.get(f"/jobs/{model['job_id']}").json()["kind"] == "register"
    headers = {"Idempotency-Key": "once"}
    twice = [
        client.post("/models", json={"name": "keyed", "source": "x"}, headers=headers).json()
        for _ in range(2)
    ]
    assert twice[0] == twice[1]
    refused = client.post("/models/tiny/promote")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_not_ready")
    client.post(f"/jobs/{model['job_id']}/cancel")
    assert client.get("/models/tiny@v1").json()["status"] == "failed"
    assert client.post("/models", json={"name": "tiny", "source": "x"}).json()["version"] == 2
