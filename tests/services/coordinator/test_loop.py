"""What the loop tells the services, and what is in the record by then."""

import threading
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from services.coordinator import loop
from services.coordinator.evaluation import scores as evaluation
from services.coordinator.iterations import state
from services.coordinator.iterations.manifest import manifest
from services.coordinator.iterations.policy import Wait, next_step
from services.coordinator.iterations.state import COMPARISON
from services.coordinator.job_services import Services
from services.coordinator.loop import MAX_FAULTS, tick
from services.judge.app import app as judge_service
from shared.db.engine import transaction
from shared.db.tables import Evaluation, Iteration, Job, JobKind, Model, Pair, Status
from shared.errors import Unavailable
from shared.jobs.shards import claim_shard, finish_shard
from shared.web.client import ServiceClient
from tests.support import access, evaluated_runs, factories
from tests.support.evaluated_runs import Out
from tests.support.scripted_engine import serving
from tests.support.waiting import at_once

NOBODY = ServiceClient("http://127.0.0.1:1", "")


def look(judge: ServiceClient = NOBODY) -> None:
    """Do all that a loop finds to do, whose services are played by `ServiceClient.put`."""
    tick(Services(generate=NOBODY, judge=judge, train=NOBODY), threading.Event(), at_once)


def test_a_training_is_asked_for_once_its_pairs_are_in_the_record(
    clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        seed = factories.model(session)
        dataset = factories.dataset(session, train=2, validation=1)
        iteration = evaluated_runs.running(session, dataset, seed)
        evaluated_runs.sampled(session, iteration, [[Out(0), Out(1)], [Out(1), Out(0)]])
        evaluated_runs.evaluated(session, iteration, seed.id, [[Out(1)]])
        id_ = iteration.id

    seen = []

    def put(client: ServiceClient, path: str, body: Any, **params: Any) -> None:
        # As the worker reads them, which may begin at once and outlive the loop.
        with transaction() as other:
            seen.append((params["step"], other.scalar(select(func.count()).select_from(Pair))))
        raise KeyboardInterrupt("the loop is killed")

    monkeypatch.setattr(ServiceClient, "put", put)
    with pytest.raises(KeyboardInterrupt):
        look()
    assert seen == [("train", 2)]
    with transaction() as session:
        pairing = session.get_one(Iteration, id_).pairing
        assert pairing is not None
        assert pairing["kept"] == 2


def test_an_iteration_that_cannot_go_on_holds_up_no_other(
    clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        seed = factories.model(session)
        dataset = factories.dataset(session, train=2, validation=1)
        broken = evaluated_runs.running(session, dataset, seed)
        whole = evaluated_runs.running(session, dataset, seed, number=2)
        broken.config = broken.config | {"a_field": "of another version"}
        ids = broken.id, whole.id
    asked = []

    def put(client: ServiceClient, path: str, body: Any, **params: Any) -> None:
        asked.append(body.get("iteration_id"))
        raise Unavailable("not now")

    monkeypatch.setattr(ServiceClient, "put", put)
    for tried in range(MAX_FAULTS):
        with transaction() as session:
            assert session.get_one(Iteration, ids[0]).finished_at is None, f"after {tried} tries"
        look()
    assert str(ids[1]) in asked
    with transaction() as session:
        error = session.get_one(Iteration, ids[0]).error
        assert error is not None
        assert error["code"] == "loop_failed"
        assert session.get_one(Iteration, ids[1]).finished_at is None


def test_what_the_database_refuses_again_and_again_ends_the_iteration(
    clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        seed, dataset = factories.model(session), factories.dataset(session, 2, 1)
        id_ = evaluated_runs.running(session, dataset, seed).id

    def refused(*_: object) -> bool:
        with transaction() as session:
            session.execute(text("SELECT 1 / 0"))
        return False

    monkeypatch.setattr(loop, "advance", refused)
    for _ in range(MAX_FAULTS):
        look()
    with transaction() as session:
        error = session.get_one(Iteration, id_).error
    assert error is not None
    assert error["code"] == "loop_failed"


def test_a_users_own_job_outlives_the_iteration_that_it_names(
    clean_database: Engine, redis_url: str
) -> None:
    with transaction() as session:
        seed, dataset = factories.model(session), factories.dataset(session, 2, 1)
        iteration = evaluated_runs.running(session, dataset, seed)
        iteration.status, iteration.finished_at = Status.succeeded, func.now()
        values = {"iteration_id": iteration.id, "kind": JobKind.train, "params": {}}
        own, step = (Job(id=uuid.uuid4(), step=step, **values) for step in (None, "train"))
        session.add_all([own, step])
    look()
    with transaction() as session:
        assert session.get_one(Job, own.id).status is Status.queued
        assert session.get_one(Job, step.id).status is Status.cancelled


def test_the_best_is_found_on_the_prompts_that_all_have_a_score_of() -> None:
    lucky, better = uuid.uuid4(), uuid.uuid4()
    scores = [(lucky, {1: 0.5, 2: 0.5}), (better, {1: 0.6, 2: 0.6, 3: 0.0})]
    assert evaluation.best(scores) == better
    assert evaluation.best([(lucky, {1: 0.5}), (better, {2: 0.6})]) == better
    assert evaluation.best([(lucky, {1: 1.0}), (better, {1: 0.0, 2: 0.6, 3: 0.6})]) == better
    assert evaluation.best([(lucky, {}), (better, {1: 0.1})]) == better


def test_a_training_that_ends_while_its_iteration_is_read_is_not_without_checkpoints(
    clean_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        seed, dataset = factories.model(session), factories.dataset(session, 1, 3)
        iteration = evaluated_runs.running(session, dataset, seed)
        evaluated_runs.evaluated(session, iteration, seed.id, [[Out(0.0)], [Out(0.5)], [Out(1.0)]])
        checkpoint = evaluated_runs.trained(session, iteration, [[Out(1.0), Out(0.0)]])
        train, checkpoint.job_id = checkpoint.job_id, None
        session.get_one(Job, train).status = Status.running
        checkpoint_id, iteration_id = checkpoint.id, iteration.id
    look = state.checkpoints

    def look_and_end(session: Session, iteration: Iteration) -> Sequence[Model]:
        """What a worker commits between two queries of the loop."""
        found = look(session, iteration)
        with transaction() as other:
            other.get_one(Model, checkpoint_id).job_id = train
            other.get_one(Job, train).status = Status.succeeded
        return found

    monkeypatch.setattr(state, "checkpoints", look_and_end)
    with transaction() as session:
        seen = state.read_state(session, session.get_one(Iteration, iteration_id))
    assert not seen.candidates
    assert next_step(seen) == Wait("train")


PAIRWISE = {"kind": "pairwise", "model": "judge"}
VERIFIER = {"kind": "verifier"}
MIXTURE = {"kind": "mixture", "judges": [{"judge": VERIFIER}, {"judge": PAIRWISE}]}


def by_api(method: str) -> Any:
    return {"kind": "openai", "model": "judge", method: {}}


@pytest.mark.parametrize(
    ("config", "when_not_the_seed"),
    [
        ({"judge": PAIRWISE}, True),
        ({"judge": MIXTURE}, True),
        ({"judge": by_api("pairwise")}, True),
        ({"validation": {"judge": PAIRWISE}}, True),
        ({"judge": PAIRWISE, "validation": {"judge": VERIFIER}}, False),
        ({"judge": by_api("pointwise")}, False),
        ({}, False),
    ],
)
def test_a_parent_is_compared_with_where_no_score_does_it(
    session: Session, config: Any, when_not_the_seed: bool
) -> None:
    seed, dataset = factories.model(session), factories.dataset(session, 1, 1)
    iteration = evaluated_runs.running(session, dataset, seed, config=config)
    assert not state.read_state(session, iteration).compares_parent
    iteration.parent_model_id = factories.model(session, name="parent").id
    assert state.read_state(session, iteration).compares_parent is when_not_the_seed


@pytest.mark.parametrize("heard", [False, True])
def test_a_comparison_with_the_parent_is_asked_for_once_whenever_the_loop_dies(
    clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    with transaction() as session:
        seed, parent = factories.model(session), factories.model(session, name="parent")
        dataset = factories.dataset(session, train=1, validation=2)
        iteration = evaluated_runs.running(
            session,
            dataset,
            seed,
            number=2,
            parent_model_id=parent.id,
            config={"judge": PAIRWISE | {"model": str(seed.id)}},
        )
        evaluated_runs.evaluated(session, iteration, seed.id, [[Out(0.5)]] * 2)
        evaluated_runs.evaluated(session, iteration, parent.id, [[Out(1.0)]] * 2)
        checkpoint = evaluated_runs.trained(session, iteration, [[Out(1.0), Out(0.0)]])
        evaluated_runs.evaluated(session, iteration, checkpoint.id, [[Out(0.0)]] * 2)
        ids = iteration.id, checkpoint.id, parent.id
    real, asked = ServiceClient.put, []

    def put(client: ServiceClient, path: str, body: Any, **params: Any) -> Any:
        if path.startswith("/models/"):
            return {"ref": "thinker@v2"}
        asked.append(path)
        if heard or len(asked) > 1:
            real(client, path, body, **params)
        if len(asked) == 1:
            raise KeyboardInterrupt("the loop is killed")
        return {}

    monkeypatch.setattr(ServiceClient, "put", put)
    with serving(judge_service) as url:
        there = ServiceClient(url, access.SERVICE_KEY)
        with pytest.raises(KeyboardInterrupt):
            look(there)
        look(there)
        job_id = _compared(*ids)
        look(there)
        there._http.close()
    assert asked == [f"/jobs/{job_id}"] * (1 if heard else 2)
    with transaction() as session:
        iteration = session.get_one(Iteration, ids[0])
        assert (iteration.status, iteration.result_model_id) == (Status.succeeded, ids[1])
        assert iteration.report is not None
        rates = iteration.report["validation"]["win_rate"]
        assert rates["parent"]["raw"]["mean"] == pytest.approx((0.75 + 0.5) / 2)
        assert rates["seed"]["raw"]["mean"] == 0
        parts = manifest(session, iteration).parts
    assert parts["judgments/validation/against-parent"].rows == 2


def _compared(iteration_id: uuid.UUID, model_id: uuid.UUID, parent_id: uuid.UUID) -> uuid.UUID:
    """Id of the one comparison, once a worker has done it."""
    with transaction() as session:
        iteration = session.get_one(Iteration, iteration_id)
        assert (iteration.status, iteration.stage) == (Status.running, "validate")
        job = session.scalars(select(Job).where(Job.step == COMPARISON)).one()
        theirs, ours = (
            session.get_one(Evaluation, (iteration.run_id, id_)).generate_job_id
            for id_ in (parent_id, model_id)
        )
        assert job.params["generate_job_id"] == str(ours)
        assert job.params["against_generate_job_id"] == str(theirs)
        held = claim_shard(session, job.id, worker="w", lease_seconds=30, max_attempts=3)
        assert held is not None
        evaluated_runs.won(session, job, held.shard_id, [0.75, 0.5])
        finish_shard(session, held, {})
        return job.id
