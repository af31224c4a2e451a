"""One contract for generate, judge and train: submit, repeat, read, list, cancel, resume."""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select

import services.generate.app
import services.judge.app
import services.train.app
from shared.db.engine import transaction
from shared.db.tables import AuditEvent, Scope, Shard, Status
from shared.thinking.formats import THINK
from tests.support import access, factories, past_runs

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
        lambda: {"items": [{"instruction": "Say a", "response": "a"}]},
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
    return access.client(case.app)


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
    other = client.put(url, json=body | case.change)
    assert (other.status_code, other.json()["error"]["param"]) == (409, "id")


def test_a_key_makes_a_repeated_post_find_the_same_job(case: Case, client: TestClient) -> None:
    headers, body = {"Idempotency-Key": "once"}, case.body()
    first = client.post(case.create, json=body, headers=headers)
    again = client.post(case.create, json=body, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert len(client.get("/jobs").json()["data"]) == 1
    other = client.post(case.create, json=body | case.change, headers=headers)
    assert (other.status_code, other.json()["error"]["param"]) == (422, "Idempotency-Key")


def audited() -> list[AuditEvent]:
    with transaction() as session:
        return list(session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def test_who_made_a_job_is_written_down_once(case: Case) -> None:
    client = access.client(case.app, access.made_key(Scope.iterate))
    url, body = f"/jobs/{uuid.uuid4()}", case.body()
    jobs = [client.post(case.create, json=body).json(), client.put(url, json=body).json()]
    assert client.put(url, json=body).json() == jobs[1]
    assert client.put(url, json=body | case.change).status_code == 409
    events = audited()
    assert [(e.action, e.subject) for e in events] == [("job.create", job["id"]) for job in jobs]
    for event in events:
        assert event.data == {"kind": jobs[0]["kind"], "iteration": None}
        assert event.key_id


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
        ("/judge", {"items": []}, "items"),
        ("/judge", {"items": [], "judge": {}}, "judge.kind"),
        ("/judge", {"items": [], "judge": {"kind": "oracle"}}, "judge.kind"),
        ("/judge", {"items": [], "judge": {"kind": "pairwise"}}, "judge.model"),
        (
            "/judge",
            {"items": [], "judge": {"kind": "openai", "model": "m"}},
            "judge.pairwise",
        ),
        (
            "/judge",
            {
                "items": [{"instruction": "a", "response": "b"}],
                "judge": {
                    "kind": "openai",
                    "model": "m",
                    "pointwise": {},
                    "base_url": "http://169.254.169.254/v1",
                },
            },
            "judge.base_url",
        ),
        (
            "/judge",
            {
                "items": [{"instruction": "a", "response": str(n)} for n in range(65)],
                "judge": {"kind": "pairwise", "model": "m"},
            },
            "items",
        ),
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
        (
            "/train",
            {"model": "seed", "pairs": [PAIR], "training": {"extra": {"a": ["\0"]}}},
            "training.extra",
        ),
        (
            "/train",
            {"model": "seed", "pairs": [PAIR], "training": {"extra": {"\ud800": 1}}},
            "training.extra",
        ),
        (
            "/train",
            {"model": "seed", "pairs": [PAIR], "training": {"max_grad_norm": float("inf")}},
            "training.max_grad_norm",
        ),
        (
            "/generate",
            {"model": "seed", "prompts": [PROMPT | {"checks": [{"kind": "math", "answer": "\0"}]}]},
            "prompts.0.checks.0.answer",
        ),
        (
            "/generate",
            {
                "model": "seed",
                "prompts": [PROMPT | {"checks": [{"kind": "forbidden", "words": ["\0"]}]}],
            },
            "prompts.0.checks.0.words",
        ),
        *(
            ("/generate", {"model": "seed", "prompts": [PROMPT], "thought_format": fmt}, param)
            for fmt, param in (
                ({"name": "a", "template": "{query}\0"}, "thought_format.template"),
                ({"name": "a", "template": "nothing"}, "thought_format.template"),
                ({"name": "a", "templates": "{query}"}, "thought_format.templates"),
                (5, "thought_format"),
                ("unheard of", "thought_format"),
            )
        ),
    ],
)
def test_bad_input_names_its_field(
    clean_database: Engine, redis_url: str, path: str, body: dict[str, Any], param: str
) -> None:
    with transaction() as session:
        factories.model(session)
    app = CASES[path.removeprefix("/")].app
    client = access.client(app)
    json_type = {"content-type": "application/json"}
    answer = client.post(path, content=json.dumps(body), headers=json_type)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


def test_responses_to_judge_come_from_a_generate_job(
    clean_database: Engine, redis_url: str
) -> None:
    with transaction() as session:
        factories.model(session)
    train, judge = (access.client(CASES[name].app) for name in ("train", "judge"))
    job = train.post("/train", json=CASES["train"].body()).json()["id"]
    answer = judge.post("/judge", json={"generate_job_id": job})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "generate_job_id")


def test_a_resumed_training_takes_other_settings(clean_database: Engine, redis_url: str) -> None:
    client = access.client(services.train.app.app)
    with transaction() as session:
        factories.model(session)
    body = {"model": "seed", "pairs": [PAIR], "training": {"micro_batch_size": 8}}
    url = f"/jobs/{client.post('/train', json=body).json()['id']}"
    change = {"training": {"learning_rate": 1e-6}}
    early = client.post(f"{url}/resume", json=change)
    assert (early.status_code, early.json()["error"]["param"]) == (409, "training")
    client.post(f"{url}/cancel")
    with transaction() as session:
        shard = session.scalars(select(Shard)).one()
        shard.payload = shard.payload | {"smaller": {"micro_batch_size": 4}}
    resumed = client.post(f"{url}/resume", json=change).json()
    assert resumed["status"] == "queued"
    assert resumed["params"]["training"]["learning_rate"] == 1e-6
    assert resumed["params"]["training"]["micro_batch_size"] == 4, "the others are the defaults"
    with transaction() as session:
        assert session.scalars(select(Shard)).one().payload == {"pairs": [PAIR]}


def test_a_model_registers_in_a_job_and_serves_only_once_ready(
    clean_database: Engine, redis_url: str
) -> None:
    client = access.client(services.train.app.app)
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


@pytest.fixture
def checkpoint(clean_database: Engine, redis_url: str) -> str:
    """Id of one that a training made of a model which thinks by itself; it has no name."""
    with transaction() as session:
        seed = factories.model(session, thought_format=THINK.model_dump())
        return str(factories.model(session, name=None, version=None, parent_id=seed.id).id)


@pytest.fixture
def train() -> TestClient:
    return access.client(services.train.app.app)


def test_a_checkpoint_is_promoted_by_a_name(train: TestClient, checkpoint: str) -> None:
    refused = train.post(f"/models/{checkpoint}/promote")
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (409, "name", "name_required")
    assert train.get(f"/models/{checkpoint}").json()["promoted_at"] is None
    for _ in range(2):
        made = train.post(f"/models/{checkpoint}/promote", json={"name": "seed"}).json()
        assert made["ref"] == "seed@v2"
        assert made["thought_format"]["name"] == "think", "as its parent"
        assert made["promoted_at"]
    other = train.post(f"/models/{checkpoint}/promote", json={"name": "other"})
    assert (other.status_code, other.json()["error"]["param"]) == (409, "name")


def test_a_release_is_written_down_once(train: TestClient, checkpoint: str) -> None:
    body = {"name": "new", "thought_format": THINK.model_dump(), "lineage": {}}
    for _ in range(2):
        assert train.put(f"/models/{checkpoint}/release", json=body).json()["ref"] == "new@v1"
    [event] = audited()
    assert (event.action, event.subject) == ("model.release", "new@v1")
    assert event.data == {"id": checkpoint}


def test_a_checkpoint_is_given_its_format_with_its_name(train: TestClient, checkpoint: str) -> None:
    body = {"name": "new", "thought_format": "generic"}
    for _ in range(2):
        made = train.post(f"/models/{checkpoint}/promote", json=body).json()
        assert (made["ref"], made["thought_format"]["name"]) == ("new@v1", "generic")
    other = train.post(f"/models/{checkpoint}/promote", json={"thought_format": "specific"})
    assert (other.status_code, other.json()["error"]["param"]) == (409, "thought_format")


@pytest.mark.usefixtures("clean_database")
def test_a_checkpoint_of_an_iteration_thinks_as_it_was_trained_to(train: TestClient) -> None:
    with transaction() as session:
        factories.model(session, thought_format=None)
        [iteration] = past_runs.past_run(session, Status.failed)
    checkpoint = past_runs.checkpoint(iteration, epoch=1)
    made = train.post(f"/models/{checkpoint}/promote", json={"name": "new"}).json()
    assert made["thought_format"]["name"] == "specific"
    assert made["lineage"]["iteration_id"] == str(iteration)


def test_a_budget_for_no_thought_is_refused(train: TestClient, checkpoint: str) -> None:
    body = {"name": "new", "thought_budgets": {"none": 500}}
    refused = train.post(f"/models/{checkpoint}/promote", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("thought_budgets.none")
