"""What POST /iterations accepts, refuses and draws; datasets by upload and by file."""

import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, select

from services.coordinator.app import app
from shared.db import transaction
from shared.models import Dataset, Iteration, IterationPrompt, Model, Prompt, Split
from shared.settings import Settings, get_settings
from tests import factories

BODY: dict[str, Any] = {"name": "thinker", "base_model": "seed", "dataset": "prompts"}
LINE = {"text": "Name a river.", "checks": [{"kind": "words", "at_most": 5}]}


@pytest.fixture
def client(clean_database: Engine, redis_url: str) -> TestClient:
    with transaction() as session:
        factories.model(session)
        factories.dataset(session, train=6, validation=2)
    return TestClient(app, raise_server_exceptions=False)


def upload(client: TestClient, text: str, name: str = "mine", **headers: str) -> Any:
    file = {"file": ("prompts.jsonl", io.BytesIO(text.encode()))}
    return client.post("/datasets/upload", data={"name": name}, files=file, headers=headers)


def prompts_of(iteration_id: str, split: Split) -> list[int]:
    with transaction() as session:
        return list(
            session.scalars(
                select(IterationPrompt.prompt_id)
                .where(
                    IterationPrompt.iteration_id == uuid.UUID(iteration_id),
                    IterationPrompt.split == split,
                )
                .order_by(IterationPrompt.position)
            )
        )


def test_a_run_draws_fresh_prompts_for_each_iteration(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY | {"count": 3})
    assert first.status_code == 202, first.text
    assert first.json()["status"] == "queued"
    assert first.headers["location"] == f"/iterations/{first.json()['id']}"
    run = client.get("/iterations", params={"run_id": first.json()["run_id"]}).json()["data"]
    drawn = [prompts_of(i["id"], Split.train) for i in run]
    assert [len(ids) for ids in drawn] == [2, 2, 2]
    assert len({p for ids in drawn for p in ids}) == 6, "a training prompt was taken twice"
    held_out = {tuple(prompts_of(i["id"], Split.validation)) for i in run}
    assert len(held_out) == 1
    assert not set(held_out.pop()) & {p for ids in drawn for p in ids}


def test_prompts_that_made_the_base_model_are_not_taken_again(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY | {"prompts_per_iteration": 4}).json()
    with transaction() as session:
        seed = session.scalars(select(Model)).one()
        factories.model(
            session, name="next", parent_id=seed.id, lineage={"iteration_id": first["id"]}
        )
    used = set(prompts_of(first["id"], Split.train))
    second = client.post("/iterations", json=BODY | {"base_model": "next"}).json()
    assert not used & set(prompts_of(second["id"], Split.train))
    refused = client.post(
        "/iterations", json=BODY | {"base_model": "next", "prompts_per_iteration": 3}
    )
    assert refused.json()["error"]["param"] == "prompts_per_iteration"


def test_the_same_key_gives_the_same_iteration_and_another_body_is_refused(
    client: TestClient,
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/iterations", json=BODY, headers=headers)
    again = client.post("/iterations", json=BODY, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = client.post("/iterations", json=BODY | {"count": 2}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    with transaction() as session:
        assert session.scalar(select(func.count()).select_from(Iteration)) == 1


def test_an_upload_with_a_key_is_taken_once(client: TestClient) -> None:
    line = json.dumps(LINE)
    first, again = (upload(client, line, **{"Idempotency-Key": "once"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = upload(client, line + "\n" + line, **{"Idempotency-Key": "once"})
    assert (other.status_code, other.json()["error"]["param"]) == (422, "Idempotency-Key")


def test_inline_prompts_become_a_dataset(client: TestClient) -> None:
    body = {
        "name": "inline",
        "base_model": "seed",
        "prompts": [LINE, LINE | {"text": "Name a lake."}],
        "validation_prompts": [LINE | {"text": "Name a sea."}],
    }
    started = client.post("/iterations", json=body)
    assert started.status_code == 202, started.text
    assert started.json()["config"]["dataset"] == f"inline-{started.json()['run_id']}"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"base_model": "nobody"}, "base_model"),
        ({"dataset": "nothing"}, "dataset"),
        ({"dataset": None}, "dataset"),
        ({"judge": {"kind": "oracle"}}, "judge.kind"),
        ({"thought_format": "loud"}, "thought_format"),
        ({"bogus": 1}, "bogus"),
        ({"sampling": {"samples": 1}}, "sampling.samples"),
        ({"length_control": {"rho": 0.7}}, "length_control.rho"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate"),
        ({"prompts_per_iteration": 7}, "prompts_per_iteration"),
        ({"count": 7}, "prompts_per_iteration"),
        ({"name": "../../etc"}, "name"),
    ],
)
def test_bad_input_names_its_field_and_writes_nothing(
    client: TestClient, change: dict[str, Any], param: str
) -> None:
    answer = client.post("/iterations", json=BODY | change)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    with transaction() as session:
        assert session.scalar(select(func.count()).select_from(Iteration)) == 0


def test_a_model_that_is_still_registering_is_a_conflict(client: TestClient) -> None:
    with transaction() as session:
        factories.model(session, name="later", path=None)
    answer = client.post("/iterations", json=BODY | {"base_model": "later"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_not_ready")


def test_the_verifier_refuses_prompts_without_checks(client: TestClient) -> None:
    lines = [LINE, {"text": "Anything."}, LINE | {"text": "b", "split": "validation"}]
    assert upload(client, "\n".join(map(json.dumps, lines))).status_code == 201
    answer = client.post("/iterations", json=BODY | {"dataset": "mine"})
    assert answer.json()["error"]["param"] == "judge.kind"
    assert "prompt 2" in answer.json()["error"]["message"]


def test_an_upload_counts_its_prompts(client: TestClient) -> None:
    lines = [LINE, LINE | {"text": "A lake?", "split": "validation", "category": "geo"}]
    made = upload(client, "\n".join(map(json.dumps, lines)) + "\n\n").json()
    assert (made["train_prompts"], made["validation_prompts"]) == (1, 1)
    assert client.get("/datasets/mine").json() == made
    assert upload(client, json.dumps(LINE)).json()["error"]["code"] == "dataset_exists"


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("", "file"),
        ('{"text": "a"}\nnot json', "lines.2"),
        ('{"text": "a"}\n{"prompt": "b"}', "lines.2.text"),
        ('{"text": "a", "checks": [{"kind": "magic"}]}', "lines.1.checks.0"),
        ('{"text": "a", "split": "test"}', "lines.1.split"),
        ('{"text": "a\\u0000"}', "lines.1.text"),
        ("[1]", "lines.1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_kept(client: TestClient, text: str, param: str) -> None:
    answer = upload(client, text)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    with transaction() as session:
        names = session.scalars(select(Dataset.name)).all()
        assert names == ["prompts"]
        assert session.scalar(select(func.count()).select_from(Prompt)) == 8


def test_a_file_is_read_only_below_the_data_root(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "good.jsonl").write_text(json.dumps(LINE))
    (tmp_path / "secret.jsonl").write_text(json.dumps(LINE))
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")

    def post(path: str) -> Any:
        return client.post("/datasets", json={"name": "file", "path": path})

    assert post("good.jsonl").json()["error"]["param"] == "path", "read with no root set"
    settings = Settings(data_root=root)
    monkeypatch.setattr("services.coordinator.datasets.get_settings", lambda: settings)
    for path in ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl", "none.jsonl"):
        assert post(path).json()["error"]["param"] == "path", path
    assert post("good.jsonl").status_code == 201
    assert get_settings().data_root is None


def test_cancelling_ends_the_rest_of_the_run_and_repeats(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY | {"count": 2}).json()
    for _ in range(2):
        cancelled = client.post(f"/iterations/{first['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    run = client.get("/iterations", params={"run_id": first["run_id"]}).json()["data"]
    assert {i["status"] for i in run} == {"cancelled"}
    resumed = client.post(f"/iterations/{first['id']}/resume")
    assert resumed.json()["status"] == "queued"
    again = client.post(f"/iterations/{first['id']}/resume")
    assert again.status_code == 409


def test_events_are_listed_and_streamed_to_the_end(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY).json()
    client.post(f"/iterations/{first['id']}/cancel")
    url = f"/iterations/{first['id']}/events"
    listed = client.get(url).json()["data"]
    assert [e["message"] for e in listed] == ["queued", "cancelled"]
    streamed = client.get(url, headers={"Accept": "text/event-stream"}).text
    assert streamed.count("event: status") == 2
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(listed[0]["id"])}
    assert client.get(url, headers=headers).text.count("event: status") == 1
