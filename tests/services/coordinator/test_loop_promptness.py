"""The loop's cost with a long queue, and who has to wait for a slow service or a long report."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from services.coordinator import loop
from services.coordinator.app import app
from services.coordinator.iterations import state, steps
from services.coordinator.iterations.state import job_id
from services.coordinator.job_services import Services
from services.train.app import app as train_service
from shared.db.engine import notify, transaction
from shared.db.tables import Iteration, Job, JobKind, Shard, Status
from shared.web.client import ServiceClient
from tests.support import access, evaluated_runs, factories
from tests.support.evaluated_runs import Out
from tests.support.scripted_engine import serving
from tests.support.statements import counted
from tests.support.waiting import at_once, until

NOBODY = ServiceClient("http://127.0.0.1:1", "")
ABSENT = Services(generate=NOBODY, judge=NOBODY, train=NOBODY)
PROMPT_SECONDS = 1.0


def running(session: Session, **given: Any) -> Iteration:
    seed, dataset = factories.model(session), factories.dataset(session, train=2, validation=1)
    return evaluated_runs.running(session, dataset, seed, **given)


def ready_to_choose(session: Session) -> Iteration:
    """An iteration whose checkpoint is scored, so that its report comes next."""
    iteration = running(session)
    evaluated_runs.evaluated(session, iteration, iteration.seed_model_id, [[Out(0.5)]])
    checkpoint = evaluated_runs.trained(session, iteration, [[Out(1.0), Out(0.0)]])
    evaluated_runs.evaluated(session, iteration, checkpoint.id, [[Out(1.0)]])
    return iteration


def queue(session: Session, first: Iteration, numbers: range) -> None:
    columns = {c.key: getattr(first, c.key) for c in Iteration.__table__.columns}
    columns |= {"status": Status.queued, "parent_model_id": None}
    rows = [columns | {"id": uuid.uuid4(), "number": n} for n in numbers]
    session.execute(insert(Iteration), rows)


def test_a_tick_costs_the_same_however_many_iterations_are_queued(
    clean_database: Engine, redis_url: str
) -> None:
    with transaction() as session:
        first = running(session)
    costs = []
    for numbers in (range(2, 3), range(3, 2002)):
        with transaction() as session:
            queue(session, first, numbers)
        with counted(clean_database) as statements:
            loop.tick(ABSENT, threading.Event(), at_once)
        costs.append(len(statements))
    assert costs[1] <= costs[0], f"{costs[0]} statements with one queued, {costs[1]} with 2,000"


def test_a_burst_of_notifications_makes_one_tick(clean_database: Engine, redis_url: str) -> None:
    waker, ticks = loop.Waker(), 0
    waker.wait(0)
    stop = threading.Event()

    def notify_often() -> None:
        while not stop.wait(0.005):
            with transaction() as session:
                notify(session, "job")

    with ThreadPoolExecutor() as pool:
        pool.submit(notify_often)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            waker.wait(1.0)
            ticks += 1
        stop.set()
    waker.close()
    assert 2 <= ticks <= 1.2 / loop.MIN_PAUSE_S, f"{ticks} ticks in a second"


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[threading.Event]:
    """A function that takes as long as the block lasts; the event tells that it was called."""
    called, go_on, real = threading.Event(), threading.Event(), getattr(module, name)

    def slow(*args: Any, **given: Any) -> Any:
        called.set()
        go_on.wait(30)
        return real(*args, **given)

    monkeypatch.setattr(module, name, slow)
    try:
        yield called
    finally:
        go_on.set()


@pytest.mark.parametrize(
    ("module", "name"),
    [(steps, "build_report"), (steps, "choose_pairs"), (ServiceClient, "put")],
    ids=["a report", "pairing", "a service that hangs"],
)
def test_a_cancel_does_not_wait(
    clean_database: Engine,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
) -> None:
    with transaction() as session:
        iteration = running(session) if name == "put" else ready_to_choose(session)
        if name == "choose_pairs":
            iteration.pairing = None
        id_ = iteration.id
    with ThreadPoolExecutor() as pool, held_up(monkeypatch, module, name) as called:
        pool.submit(loop.take, ABSENT, id_, threading.Event())
        assert called.wait(10), f"the loop did not come to {name}"
        began = time.monotonic()
        answer = access.client(app).post(f"/iterations/{id_}/cancel")
        seconds = time.monotonic() - began
        assert answer.json()["status"] == "cancelled", answer.text
        assert seconds < PROMPT_SECONDS, f"the cancel took {seconds:.1f} s"
    with transaction() as session:
        row = session.get_one(Iteration, id_)
        assert row.status is Status.cancelled, "the step that was overtaken has undone the cancel"
        assert row.report is None


def test_an_iteration_whose_service_hangs_holds_up_neither_the_sweep_nor_another(
    clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        slow = running(session)
        columns = {c.key: getattr(slow, c.key) for c in Iteration.__table__.columns}
        other = Iteration(**columns | {"id": uuid.uuid4(), "run_id": uuid.uuid4()})
        session.add(other)
    ids = {str(slow.id), str(other.id)}
    asked, go_on = [], threading.Event()

    def put(_: ServiceClient, __: str, body: Any, **params: Any) -> None:
        asked.append(body["iteration_id"])
        go_on.wait(30)

    monkeypatch.setattr(ServiceClient, "put", put)
    crew, stop = loop.Crew(), threading.Event()
    try:
        began = time.monotonic()
        for _ in range(3):
            loop.tick(ABSENT, stop, crew.start)
        assert time.monotonic() - began < PROMPT_SECONDS, "a tick waits for the service"
        until(lambda: set(asked) == ids, "both iterations are advanced")
        assert len(asked) == 2, "an iteration is advanced twice at once"
    finally:
        stop.set()
        go_on.set()
        crew.end()


def test_a_resume_is_completed_by_the_loop(clean_database: Engine, redis_url: str) -> None:
    """No service runs when it is asked for: the loop resumes the jobs once there is one."""
    with transaction() as session:
        iteration = running(session)
        evaluated_runs.evaluated(session, iteration, iteration.seed_model_id, [[Out(0.5)]])
        evaluated_runs.sampled(session, iteration, [[Out(1.0), Out(0.0)]])
        evaluated_runs.paired(session, iteration)
        params = {"model": str(iteration.parent_model_id), "training": iteration.config["training"]}
        train = Job(
            id=job_id(iteration.id, "train"),
            kind=JobKind.train,
            status=Status.failed,
            params=params,
            iteration_id=iteration.id,
            step="train",
            error={"code": "engine_failed", "message": "no memory"},
            finished_at=func.clock_timestamp(),
        )
        session.add(train)
        session.flush()
        session.add(Shard(job_id=train.id, index=0, status=Status.failed, payload={"smaller": 1}))
    stop = threading.Event()
    loop.take(ABSENT, iteration.id, stop)
    client = access.client(app)
    url = f"/iterations/{iteration.id}"
    assert client.get(url).json()["error"]["code"] == "engine_failed"
    change = {"training": {"learning_rate": 1e-6}}
    assert client.post(f"{url}/resume", json=change).status_code == 202
    loop.take(ABSENT, iteration.id, stop)
    assert client.get(url).json()["status"] == "running", "it failed of what was resumed"
    with serving(train_service) as address:
        there = ServiceClient(address, access.SERVICE_KEY)
        for _ in range(2):
            loop.take(Services(generate=there, judge=there, train=there), iteration.id, stop)
        there._http.close()
    with transaction() as session:
        job = session.get_one(Job, train.id)
        assert (job.status, job.error) == (Status.queued, None)
        assert job.params["training"]["learning_rate"] == 1e-6
        [shard] = session.scalars(select(Shard).where(Shard.job_id == job.id))
        assert (shard.status, shard.payload) == (Status.queued, {})
        row = session.get_one(Iteration, iteration.id)
        assert state.read_state(session, row).to_resume == []
