"""`baseline: true`: a second run that differs in the thoughts alone."""

import uuid
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from shared.db.engine import transaction
from shared.db.tables import Iteration, IterationPrompt
from shared.thinking.formats import NONE

BODY: dict[str, Any] = {
    "name": "thinker",
    "base_model": "seed",
    "dataset": "prompts",
    "count": 2,
    "baseline": True,
    "promote": "always",
}


def run(client: TestClient, run_id: str) -> list[dict[str, Any]]:
    data = client.get("/iterations", params={"run_id": run_id}).json()["data"]
    return sorted(data, key=lambda iteration: int(iteration["number"]))


def drawn(iteration_id: str) -> list[tuple[int, str, int]]:
    at = IterationPrompt
    query = select(at.prompt_id, at.split, at.position).where(
        at.iteration_id == uuid.UUID(iteration_id)
    )
    with transaction() as session:
        return sorted((p, str(split), i) for p, split, i in session.execute(query))


def test_it_differs_in_the_thoughts_alone(client: TestClient) -> None:
    started = client.post("/iterations", json=BODY)
    assert started.status_code == 202, started.text
    thinking = run(client, started.json()["run_id"])
    direct = run(client, started.json()["baseline_run_id"])
    assert [len(thinking), len(direct)] == [2, 2]
    for ours, theirs in zip(thinking, direct, strict=True):
        changed = {key for key in ours["config"] if ours["config"][key] != theirs["config"][key]}
        assert changed == {"name", "thought_format", "baseline", "promote"}
        assert theirs["config"]["name"] == "thinker-direct"
        assert theirs["config"]["thought_format"] == NONE.model_dump()
        assert theirs["config"]["promote"] == "never"
        assert drawn(ours["id"]) == drawn(theirs["id"])
        assert ours["seed_model"] == theirs["seed_model"]


def test_the_two_name_each_other(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY).json()
    [direct, _] = run(client, first["baseline_run_id"])
    assert direct["baseline_of"] == first["run_id"]
    assert (direct["baseline_run_id"], first["baseline_of"]) == (None, None)
    read = client.get(f"/iterations/{first['id']}").json()
    assert read["baseline_run_id"] == first["baseline_run_id"]


def test_inline_prompts_are_one_dataset(client: TestClient) -> None:
    line = {"checks": [{"kind": "words", "at_most": 5}]}
    body = {key: BODY[key] for key in ("name", "base_model", "baseline")}
    body |= {"prompts": [line | {"text": "a"}], "validation_prompts": [line | {"text": "b"}]}
    first = client.post("/iterations", json=body).json()
    [direct] = run(client, first["baseline_run_id"])
    assert direct["config"]["dataset"] == first["config"]["dataset"]


def test_it_goes_on_when_the_run_is_cancelled(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY).json()
    client.post(f"/iterations/{first['id']}/cancel")
    assert {i["status"] for i in run(client, first["run_id"])} == {"cancelled"}
    assert {i["status"] for i in run(client, first["baseline_run_id"])} == {"queued"}


def test_a_key_starts_both_once(client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first, again = (client.post("/iterations", json=BODY, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    with transaction() as session:
        assert session.scalar(select(func.count()).select_from(Iteration)) == 4


def test_without_it_there_is_none(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY | {"baseline": False}).json()
    assert first["baseline_run_id"] is None
    with transaction() as session:
        assert session.scalar(select(func.count()).select_from(Iteration)) == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [({"thought_format": "none"}, "baseline"), ({"name": "x" * 58}, "name")],
)
def test_what_cannot_have_one_is_refused(
    client: TestClient, change: dict[str, Any], param: str
) -> None:
    answer = client.post("/iterations", json=BODY | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
