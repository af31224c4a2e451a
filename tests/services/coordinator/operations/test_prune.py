"""What POST /prune and the setting mark, what they leave alone, and what a pruned run answers."""

import shutil
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, select, update

from services.coordinator.app import app
from services.coordinator.iterations.state import job_id
from services.coordinator.job_services import Services
from services.coordinator.loop import tick
from services.coordinator.operations.prune import Retention
from services.train.app import app as train
from shared.db.engine import transaction
from shared.db.tables import Completion, Iteration, Job, JobKind, Model, Status
from shared.registry.models import training_folder
from shared.settings import Settings
from shared.web.client import ServiceClient
from tests.support import access, factories
from tests.support.past_runs import checkpoint, files, past_run, samples
from tests.support.scripted_engine import serving
from tests.support.stages import run_stage
from tests.support.waiting import at_once
from workers.models import prune as stage

OK, FAILED, CANCELLED = Status.succeeded, Status.failed, Status.cancelled
NOTHING = {"iterations": 0, "completions": 0, "checkpoints": 0, "bytes": 0}


@pytest.fixture
def client(clean_database: Engine, redis_url: str) -> Iterator[TestClient]:
    with transaction() as session:
        factories.model(session)
    yield access.client(app)
    shutil.rmtree(training_folder(uuid.uuid4()).parent, ignore_errors=True)


@pytest.fixture(scope="module")
def services(engine: Engine, redis_url: str) -> Iterator[Services]:
    with serving(train) as url:
        away, there = (
            ServiceClient("http://127.0.0.1:1", ""),
            ServiceClient(url, access.SERVICE_KEY),
        )
        yield Services(generate=away, judge=away, train=there)
        there._http.close()


def ended(*outcomes: Status, **given: Any) -> list[uuid.UUID]:
    with transaction() as session:
        return past_run(session, *outcomes, **given)


def post(client: TestClient, days: float = 7, **body: Any) -> dict[str, int]:
    answer = client.post("/prune", json={"older_than_days": days} | body)
    assert answer.status_code == 200, answer.text
    return {key: answer.json()[key] for key in NOTHING}


def marked() -> set[uuid.UUID]:
    with transaction() as session:
        return set(session.scalars(select(Iteration.id).where(Iteration.pruned_at.is_not(None))))


def prune_jobs() -> list[Job]:
    with transaction() as session:
        return list(session.scalars(select(Job).where(Job.kind == JobKind.prune)))


def counts() -> tuple[int, int]:
    """Completions, and models with weights."""
    with transaction() as session:
        completions = session.scalar(select(func.count()).select_from(Completion))
        return completions or 0, session.scalar(select(func.count(Model.path))) or 0


def test_what_is_announced_is_what_goes(client: TestClient, services: Services) -> None:
    old = ended(OK, FAILED, CANCELLED)
    young = ended(OK, FAILED, days=1)
    before = counts()
    announced = post(client, dry_run=True)
    # Of the one that made a model a pair and that model stay.
    want = {"iterations": 3, "completions": 6 + 6 + 4, "checkpoints": 5, "bytes": 5000}
    assert announced == want
    assert (marked(), counts()) == (set(), before)
    tick(services, threading.Event(), at_once)
    assert prune_jobs() == []

    assert post(client) == announced
    assert marked() == set(old)
    tick(services, threading.Event(), at_once)
    for job in prune_jobs():
        run_stage(stage.main, job.id)
    assert [job.status for job in prune_jobs()] == [OK] * 3
    after = counts()
    assert (before[0] - after[0], before[1] - after[1]) == (want["completions"], 5)
    assert post(client) == NOTHING
    assert not marked() & set(young)
    with transaction() as session:
        assert samples(session, young[1]) == [0, 1, 2, 3]


def test_a_run_stays_whole_until_its_last_iteration_is_old(client: TestClient) -> None:
    first, second = ended(OK, FAILED)
    with transaction() as session:
        session.get_one(Iteration, second).finished_at = func.now()
    assert post(client) == NOTHING
    with transaction() as session:
        session.get_one(Iteration, second).finished_at = None
    assert post(client, days=0) == NOTHING
    assert {first, second}.isdisjoint(marked())


def test_a_run_waits_for_its_jobs_and_for_whoever_uses_its_checkpoints(client: TestClient) -> None:
    [failed] = ended(FAILED)
    with transaction() as session:
        session.get_one(Job, job_id(failed, "judge of generate")).status = Status.running
    assert post(client) == NOTHING
    with transaction() as session:
        session.get_one(Job, job_id(failed, "judge of generate")).status = Status.cancelled
        seed = session.get_one(Model, checkpoint(failed, 1))
        [young] = past_run(session, FAILED, days=1, seed=seed)
    assert post(client) == NOTHING
    with transaction() as session:
        old = select(Iteration.finished_at).where(Iteration.id == failed).scalar_subquery()
        session.execute(update(Iteration).where(Iteration.id == young).values(finished_at=old))
    found = post(client)
    assert (found["iterations"], found["checkpoints"]) == (2, 4), "the later one sets it free"


def test_a_pruned_iteration_says_so(client: TestClient, services: Services) -> None:
    made, failed = ended(OK, FAILED)
    post(client)
    tick(services, threading.Event(), at_once)
    for job in prune_jobs():
        run_stage(stage.main, job.id)
    read = client.get(f"/iterations/{made}").json()
    assert read["pruned_at"] > read["finished_at"]
    assert client.get(f"/iterations/{made}/report").json() == {"completions": 4}
    manifest = client.get(f"/iterations/{made}/manifest")
    assert (manifest.status_code, manifest.json()["error"]["code"]) == (410, "pruned")
    resumed = client.post(f"/iterations/{failed}/resume")
    assert resumed.status_code == 409
    assert resumed.json()["error"]["code"] == "iteration_pruned"
    left = client.get(f"/iterations/{made}/completions").json()["data"]
    assert [row["sample_index"] for row in left] == [0, 3]
    assert len(client.get(f"/iterations/{made}/pairs").json()["data"]) == 1
    events = client.get(f"/iterations/{made}/events").json()["data"]
    assert [event["message"] for event in events] == ["pruned"]

    gone = checkpoint(made, 1)
    models = access.client(train)
    assert models.get(f"/models/{gone}").json()["status"] == "pruned"
    assert models.get(f"/models/{checkpoint(made, 2)}").json()["status"] == "ready"
    body = {"name": "n", "base_model": str(gone), "dataset": "prompts"}
    for answer in (
        client.post("/iterations", json=body),
        models.post(f"/models/{gone}/promote"),
        models.post("/jobs/" + str(cancelled_job(gone)) + "/resume"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_pruned")


def cancelled_job(model_id: uuid.UUID) -> uuid.UUID:
    id_ = uuid.uuid4()
    with transaction() as session:
        params = {"model": str(model_id)}
        row = Job(id=id_, kind=JobKind.train, status=Status.cancelled, params=params)
        session.add(row)
    return id_


def test_the_loop_sends_what_is_marked_once_and_does_not_cancel_it(
    client: TestClient, services: Services
) -> None:
    [failed] = ended(FAILED)
    post(client)
    for _ in range(3):
        tick(services, threading.Event(), at_once)
    [job] = prune_jobs()
    assert (job.id, job.status) == (job_id(failed, "prune"), Status.queued)


def test_a_service_that_is_away_is_asked_again(client: TestClient, services: Services) -> None:
    ended(FAILED)
    post(client)
    away = ServiceClient("http://127.0.0.1:1", "")
    tick(Services(generate=away, judge=away, train=away), threading.Event(), at_once)
    assert prune_jobs() == []
    tick(services, threading.Event(), at_once)
    assert len(prune_jobs()) == 1


def test_nothing_is_deleted_of_an_iteration_that_is_not_marked(client: TestClient) -> None:
    [failed] = ended(FAILED)
    service = access.client(train)
    url = f"/prune/{job_id(failed, 'prune')}"
    assert service.put(url, json={"iteration_id": str(failed)}).status_code == 409
    assert service.put(url, json={"iteration_id": str(uuid.uuid4())}).status_code == 404


def test_the_setting_prunes_once_an_hour_and_unset_never(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    [failed] = ended(FAILED)
    loop, other = Retention(), Retention()
    loop.look()
    assert marked() == set()
    settings = Settings(retention_days=7)
    monkeypatch.setattr("services.coordinator.operations.prune.get_settings", lambda: settings)
    threads = [threading.Thread(target=one.look) for one in (loop, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert marked() == {failed}
    events = client.get(f"/iterations/{failed}/events").json()["data"]
    assert [event["message"] for event in events] == ["pruned"], "both loops marked it"
    [later] = ended(FAILED)
    loop.look()
    assert later not in marked()


def test_a_resume_that_is_first_wins(client: TestClient) -> None:
    [failed] = ended(FAILED)
    thread = threading.Thread(target=post, args=(client,))
    with transaction() as session:
        row = session.get_one(Iteration, failed, with_for_update={"key_share": True})
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        row.status, row.finished_at = Status.running, None
    thread.join()
    assert marked() == set()
    assert "attempt-1/epoch-1/model.safetensors" in files(failed)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "older_than_days"),
        ({"older_than_days": -1}, "older_than_days"),
        ({"older_than_days": 1e9}, "older_than_days"),
        ({"older_than_days": 1, "dryrun": True}, "dryrun"),
    ],
)
def test_bad_input_names_its_field(client: TestClient, body: dict[str, Any], param: str) -> None:
    answer = client.post("/prune", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
