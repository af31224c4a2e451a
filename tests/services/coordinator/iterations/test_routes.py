"""What POST /iterations accepts, refuses and draws; datasets by upload and by file."""

import errno
import io
import json
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text
from starlette.datastructures import UploadFile

from services.coordinator.datasets import routes as datasets
from services.coordinator.datasets.jsonl import MAX_LINE_BYTES, PromptLine
from services.coordinator.iterations.state import job_id
from shared.db.engine import transaction
from shared.db.tables import (
    Dataset,
    Iteration,
    IterationPrompt,
    Job,
    JobKind,
    Model,
    Prompt,
    Split,
    Status,
)
from shared.settings import Settings, get_settings
from shared.thinking.formats import GENERIC
from tests.support import factories
from tests.support.waiting import until

BODY: dict[str, Any] = {"name": "thinker", "base_model": "seed", "dataset": "prompts"}
ELSEWHERE = {"kind": "openai", "model": "m", "pointwise": {}, "base_url": "http://10.0.0.1/v1"}
CODE = {"kind": "reward_model", "model": "some/model", "trust_remote_code": True}
LINE = {"text": "Name a river.", "checks": [{"kind": "words", "at_most": 5}]}


def upload(client: TestClient, lines: str, name: str = "mine", **headers: str) -> Any:
    file = {"file": ("prompts.jsonl", io.BytesIO(lines.encode()))}
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
    config = first.json()["config"]
    assert config["thought_format"] == GENERIC.model_dump()
    assert config["prompts_per_iteration"] == 2, "as resolved"
    assert first.headers["location"] == f"/iterations/{first.json()['id']}"
    run = client.get("/iterations", params={"run_id": first.json()["run_id"]}).json()["data"]
    drawn = [prompts_of(i["id"], Split.train) for i in run]
    assert [len(ids) for ids in drawn] == [2, 2, 2]
    assert len({p for ids in drawn for p in ids}) == 6, "a training prompt was taken twice"
    held_out = {tuple(prompts_of(i["id"], Split.validation)) for i in run}
    assert len(held_out) == 1
    assert not set(held_out.pop()) & {p for ids in drawn for p in ids}


def trained(iteration_id: str) -> None:
    """The model `next`, that the iteration has made of the seed."""
    with transaction() as session:
        seed = session.scalars(select(Model).where(Model.name == "seed")).one()
        job_id = uuid.uuid4()
        values = {"kind": JobKind.train, "status": Status.succeeded, "params": {}}
        session.add(Job(id=job_id, iteration_id=uuid.UUID(iteration_id), **values))
        session.flush()
        factories.model(session, name="next", parent_id=seed.id, job_id=job_id)


def texts_of(iteration_id: str, split: Split) -> list[str]:
    with transaction() as session:
        drawn = Prompt.id.in_(prompts_of(iteration_id, split))
        return sorted(session.scalars(select(Prompt.text).where(drawn)))


def jsonl(train: Iterable[str], validation: Iterable[str], **of_each: Any) -> str:
    rows = [LINE | of_each | {"text": t} for t in train]
    rows += [LINE | of_each | {"text": t, "split": "validation"} for t in validation]
    return "\n".join(map(json.dumps, rows))


def test_prompts_that_made_the_base_model_are_not_taken_again(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY | {"prompts_per_iteration": 4}).json()
    trained(first["id"])
    used = set(prompts_of(first["id"], Split.train))
    second = client.post("/iterations", json=BODY | {"base_model": "next"}).json()
    assert not used & set(prompts_of(second["id"], Split.train))
    refused = client.post(
        "/iterations", json=BODY | {"base_model": "next", "prompts_per_iteration": 3}
    )
    assert refused.json()["error"]["param"] == "prompts_per_iteration"


def test_equal_texts_are_one_prompt_and_what_is_held_out_stays_so(client: TestClient) -> None:
    assert upload(client, jsonl("abbac", "cdd")).status_code == 201
    body = BODY | {"dataset": "mine"}
    started = client.post("/iterations", json=body).json()
    assert texts_of(started["id"], Split.train) == ["a", "b"]
    assert texts_of(started["id"], Split.validation) == ["c", "d"]
    assert started["config"]["prompts_per_iteration"] == 2
    error = client.post("/iterations", json=body | {"prompts_per_iteration": 3}).json()["error"]
    assert "has 2 training prompts of different texts" in error["message"]


def test_texts_that_made_the_base_model_are_known_in_another_dataset(client: TestClient) -> None:
    upload(client, jsonl("abc", "d"), "first")
    made = client.post("/iterations", json=BODY | {"dataset": "first"}).json()
    trained(made["id"])
    upload(client, jsonl("bde", "cf", category="other"), "second")
    body = BODY | {"base_model": "next", "dataset": "second"}
    started = client.post("/iterations", json=body).json()
    assert texts_of(started["id"], Split.train) == ["d", "e"], "d was held out, not trained on"
    assert texts_of(started["id"], Split.validation) == ["f"]
    upload(client, jsonl("g", "abc"), "third")
    error = client.post("/iterations", json=body | {"dataset": "third"}).json()["error"]
    assert error["param"] == "dataset"
    assert "no validation prompts that the base model has not been trained on" in error["message"]


def test_a_text_with_other_checks_is_another_prompt_of_its_split(client: TestClient) -> None:
    other = [{"kind": "words", "at_least": 5}]
    both = jsonl("ab", "c") + "\n" + jsonl("ac", "c", checks=other)
    assert upload(client, both).status_code == 201
    started = client.post("/iterations", json=BODY | {"dataset": "mine"}).json()
    assert texts_of(started["id"], Split.train) == ["a", "a", "b"]
    assert texts_of(started["id"], Split.validation) == ["c", "c"]


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
        "prompts": [LINE, LINE | {"text": "Name a lake.", "category": "lakes"}],
        "validation_prompts": [LINE | {"text": "Name a sea."}],
    }
    started = client.post("/iterations", json=body)
    assert started.status_code == 202, started.text
    assert started.json()["config"]["dataset"] == f"inline-{started.json()['run_id']}"
    with transaction() as session:
        lake = session.scalars(select(Prompt).where(Prompt.text == "Name a lake.")).one()
        assert lake.category == "lakes"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"base_model": "nobody"}, "base_model"),
        ({"dataset": "nothing"}, "dataset"),
        ({"dataset": None}, "dataset"),
        ({"judge": {"kind": "oracle"}}, "judge.kind"),
        ({"judge": ELSEWHERE}, "judge.base_url"),
        ({"validation": {"judge": ELSEWHERE}}, "validation.judge.base_url"),
        (
            {"judge": {"kind": "mixture", "judges": [{"judge": CODE}, {"judge": ELSEWHERE}]}},
            "judge.judges.0.judge.trust_remote_code",
        ),
        ({"thought_format": "loud"}, "thought_format"),
        ({"bogus": 1}, "bogus"),
        ({"sampling": {"samples": 1}}, "sampling.samples"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature"),
        ({"validation": {"samples": 2}}, "validation.temperature"),
        ({"length_control": {"rho": 0.7}}, "length_control.rho"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate"),
        ({"training": {"max_length": 2047}}, "training.max_length"),
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
        factories.model(session, name="later", path=None, weights_sha256=None)
    answer = client.post("/iterations", json=BODY | {"base_model": "later"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_not_ready")


def test_the_verifier_refuses_prompts_without_checks(client: TestClient) -> None:
    lines = [LINE, {"text": "Anything."}, LINE | {"text": "b", "split": "validation"}]
    assert upload(client, "\n".join(map(json.dumps, lines))).status_code == 201
    answer = client.post("/iterations", json=BODY | {"dataset": "mine"})
    assert answer.json()["error"]["param"] == "judge.kind"
    assert "prompt 2" in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["prompts", "validation_prompts"])
def test_the_verifier_names_the_inline_prompt_without_checks(
    client: TestClient, field: str
) -> None:
    body = {"name": "inline", "base_model": "seed", "prompts": [LINE], "validation_prompts": [LINE]}
    answer = client.post("/iterations", json=body | {field: [LINE, {"text": "Anything."}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, f"{field}.1")
    assert "inline-" not in error["message"]


def test_too_few_inline_prompts_are_said_to_be_the_requests(client: TestClient) -> None:
    body = {"name": "inline", "base_model": "seed", "prompts": [LINE]}
    body["validation_prompts"] = [LINE | {"text": "Name a sea."}]
    error = client.post("/iterations", json=body | {"count": 2}).json()["error"]
    assert error["param"] == "prompts_per_iteration"
    assert "the request has 1 training prompts" in error["message"]


def test_an_upload_counts_its_prompts(client: TestClient) -> None:
    lines = [LINE, LINE | {"text": "A lake?", "split": "validation", "category": "geo"}]
    made = upload(client, "\n".join(map(json.dumps, lines)) + "\n\n").json()
    assert (made["train_prompts"], made["validation_prompts"]) == (1, 1)
    assert client.get("/datasets/mine").json() == made
    assert upload(client, json.dumps(LINE)).json()["error"]["code"] == "dataset_exists"


def test_a_form_field_that_no_upload_has_is_named(client: TestClient) -> None:
    form: dict[str, Any] = {"data": {"name": "mine", "splt": "train"}}
    file = {"file": ("prompts.jsonl", io.BytesIO(json.dumps(LINE).encode()))}
    answer = client.post("/datasets/upload", **form, files=file)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "splt", "unknown_field")
    assert client.get("/datasets/mine").status_code == 404


def test_of_two_uploads_of_a_name_at_once_the_later_is_a_conflict(client: TestClient) -> None:
    with ThreadPoolExecutor() as pool:
        with transaction() as session:
            factories.dataset(session, name="mine")
            late = pool.submit(upload, client, json.dumps(LINE))
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            until(lambda: session.scalar(waiting), "the upload waits for the name")
        answer = late.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "dataset_exists")


@pytest.mark.parametrize(
    ("lines", "param"),
    [
        ("", "file"),
        ('{"text": "a"}\nnot json', "lines.2"),
        ('{"text": "a"}\n{"prompt": "b"}', "lines.2.text"),
        ('{"text": "a", "checks": [{"kind": "magic"}]}', "lines.1.checks.0.kind"),
        (
            '{"text": "a", "checks": [{"kind": "language", "code": "xx"}]}',
            "lines.1.checks.0.code",
        ),
        (
            '{"text": "a"}\n'
            '{"text": "b", "checks": [{"kind": "words", "at_least": 9, "at_most": 3}]}',
            "lines.2.checks.0.at_least",
        ),
        ('{"text": "a", "checks": [{"kind": "words"}]}', "lines.1.checks.0.at_least"),
        ('{"text": "a", "split": "test"}', "lines.1.split"),
        ('{"text": "a\\u0000"}', "lines.1.text"),
        (
            '{"text": "a", "checks": [{"kind": "math", "answer": "\\u0000"}]}',
            "lines.1.checks.0.answer",
        ),
        ("[1]", "lines.1"),
        ("[" * 100_000, "lines.1"),
        ('{"text": "b"}\n' + " " * MAX_LINE_BYTES + "5", "lines.2"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_kept(
    client: TestClient, lines: str, param: str
) -> None:
    answer = upload(client, lines)
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
    (root / "empty.jsonl").write_text("\n")
    (tmp_path / "secret.jsonl").write_text(json.dumps(LINE))
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")

    def post(path: str) -> Any:
        return client.post("/datasets", json={"name": "file", "path": path})

    assert post("good.jsonl").json()["error"]["param"] == "path", "read with no root set"
    settings = Settings(data_root=root)
    monkeypatch.setattr("services.coordinator.datasets.routes.get_settings", lambda: settings)
    (root / "loop.jsonl").symlink_to(root / "loop.jsonl")
    outside = ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl")
    for path in (*outside, "empty.jsonl", "none.jsonl", "loop.jsonl", "x" * 300):
        assert post(path).json()["error"]["param"] == "path", path
    assert post("good.jsonl").status_code == 201
    assert get_settings().data_root is None


def test_a_file_may_be_as_large_as_an_upload(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps(LINE)
    (tmp_path / "file.jsonl").write_text(line)

    def post(most: int) -> Any:
        settings = Settings(data_root=tmp_path, max_upload_bytes=most)
        monkeypatch.setattr("services.coordinator.datasets.routes.get_settings", lambda: settings)
        return client.post("/datasets", json={"name": "file", "path": "file.jsonl"})

    refused = post(len(line) - 1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (413, "path")
    assert post(len(line)).status_code == 201


def test_long_lines_are_not_kept_for_a_thousand_of_them(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [PromptLine(text=f"{n}" * 100) for n in range(5)]
    whole = [len(chunk) for chunk in datasets._chunks(lines)]
    monkeypatch.setattr(datasets, "CHUNK_BYTES", 300)
    assert (whole, [len(chunk) for chunk in datasets._chunks(lines)]) == ([5], [2, 2, 1])
    made = upload(client, "\n".join(line.model_dump_json() for line in lines)).json()
    with transaction() as session:
        kept = select(Prompt.position, Prompt.text).where(Prompt.dataset_id == made["id"])
        found = session.execute(kept.order_by(Prompt.position)).all()
    assert [tuple(row) for row in found] == [(n, line.text) for n, line in enumerate(lines)]


def test_an_upload_that_finds_no_room_is_told_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(UploadFile, "write", full)
    answer = upload(client, json.dumps(LINE))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")


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


def test_those_that_a_failure_ended_wait_for_it_again(client: TestClient) -> None:
    first = client.post("/iterations", json=BODY | {"count": 3}).json()
    client.post(f"/iterations/{first['id']}/cancel")
    with transaction() as session:
        rows = session.scalars(select(Iteration).order_by(Iteration.number)).all()
        for row in rows:
            code = "engine_failed" if row.number == 1 else "parent_failed"
            row.status, row.error = Status.failed, {"code": code, "message": "it ended"}
    assert client.post(f"/iterations/{first['id']}/resume").status_code == 202
    run = client.get("/iterations", params={"run_id": first["run_id"]}).json()["data"]
    ends = [(i["status"], i["error"], i["finished_at"]) for i in run]
    assert ends == [("queued", None, None)] * 3


def test_a_resumed_iteration_takes_other_training_settings(client: TestClient) -> None:
    url = f"/iterations/{client.post('/iterations', json=BODY).json()['id']}"
    change = {"training": {"learning_rate": 1e-6}}
    client.post(f"{url}/cancel")
    bad = client.post(f"{url}/resume", json={"training": {"learning_rat": 1}})
    assert bad.json()["error"]["param"] == "training.learning_rat"
    resumed = client.post(f"{url}/resume", json=change).json()
    assert resumed["status"] == "queued"
    assert resumed["config"]["training"]["learning_rate"] == 1e-6
    history = client.get(f"{url}/events").json()["data"]
    assert history[-1]["data"]["training"]["learning_rate"] == 1e-6


def test_a_resume_leaves_a_users_own_job_as_it_is(client: TestClient) -> None:
    id_ = client.post("/iterations", json=BODY).json()["id"]
    client.post(f"/iterations/{id_}/cancel")
    with transaction() as session:
        values = {"kind": JobKind.train, "status": Status.cancelled, "params": {}}
        session.add(Job(id=uuid.uuid4(), iteration_id=uuid.UUID(id_), **values))
    # No train service runs here that could be asked.
    assert client.post(f"/iterations/{id_}/resume").json()["status"] == "queued"


def test_a_training_that_is_done_keeps_its_settings(client: TestClient) -> None:
    id_ = client.post("/iterations", json=BODY).json()["id"]
    client.post(f"/iterations/{id_}/cancel")
    with transaction() as session:
        train = job_id(uuid.UUID(id_), "train")
        session.add(Job(id=train, kind=JobKind.train, status=Status.succeeded, params={}))
    refused = client.post(f"/iterations/{id_}/resume", json={"training": {}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (409, "training")
    assert client.get(f"/iterations/{id_}").json()["status"] == "cancelled"


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


@pytest.mark.parametrize("id_", ["99999999999999999999", "-1", "nine", "9" * 5000])
def test_a_stream_is_not_resumed_after_what_is_no_event(client: TestClient, id_: str) -> None:
    first = client.post("/iterations", json=BODY).json()
    client.post(f"/iterations/{first['id']}/cancel")
    url, stream = f"/iterations/{first['id']}/events", {"Accept": "text/event-stream"}
    answer = client.get(url, headers=stream | {"Last-Event-ID": id_})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    answer = client.get(url, headers=stream, params={"after": id_})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


def test_a_nul_in_a_path_is_named(client: TestClient) -> None:
    answer = client.get("/models/a%00b")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "reference"
