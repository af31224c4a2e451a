"""Workers come and go with the work there is, and none is ended while it has some."""

import uuid

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.db.tables import JobKind
from shared.jobs.broker import QUEUE
from shared.jobs.job import NewShard, fail_job, submit_job
from shared.jobs.shards import Claim, claim_shard, finish_shard
from tests.deploy.manifests import Object, container, name_of, of_kind, overlay, pods

SCALED = list(of_kind(overlay("multi-node"), "ScaledObject"))
QUEUES = sorted(set(QUEUE.values()))


def scaler(queue: str) -> Object:
    (found,) = (found for found in SCALED if name_of(found) == f"worker-{queue}")
    return found


def trigger(queue: str) -> Object:
    (only,) = scaler(queue)["spec"]["triggers"]
    assert only["type"] == "postgresql"
    metadata: Object = only["metadata"]
    return metadata


def demand(session: Session, queue: str) -> int:
    found = session.execute(text(trigger(queue)["query"])).scalar_one()
    assert isinstance(found, int)
    return found


def test_each_queue_has_one() -> None:
    assert sorted(name_of(found) for found in SCALED) == [f"worker-{queue}" for queue in QUEUES]


@pytest.mark.parametrize("queue", QUEUES)
def test_it_scales_the_worker_of_its_queue(queue: str) -> None:
    target = scaler(queue)["spec"]["scaleTargetRef"]["name"]
    assert container(pods(overlay("multi-node"))[target])["args"] == [queue]
    (worker,) = (d for d in of_kind(overlay("multi-node"), "Deployment") if name_of(d) == target)
    # A number in the file would undo KEDA's at each apply.
    assert "replicas" not in worker["spec"]


@pytest.mark.parametrize("queue", QUEUES)
def test_it_goes_down_to_none_only_and_only_without_work(queue: str) -> None:
    spec = scaler(queue)["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == {"scaleDown": {"selectPolicy": "Disabled"}}
    assert spec["minReplicaCount"] == 0


def test_it_logs_in_with_the_secret() -> None:
    (authentication,) = of_kind(overlay("multi-node"), "TriggerAuthentication")
    for found in SCALED:
        (only,) = found["spec"]["triggers"]
        assert only["authenticationRef"]["name"] == name_of(authentication)
    (reference,) = authentication["spec"]["secretTargetRef"]
    postgres = pods(overlay("multi-node"))["postgres"]
    env = {variable["name"]: variable for variable in container(postgres)["env"]}
    secret = env["POSTGRES_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert reference == {"parameter": "password"} | secret


@pytest.mark.parametrize("kind", JobKind)
def test_work_is_what_is_queued_or_running(session: Session, kind: JobKind) -> None:
    queue = QUEUE[kind]
    before = {other: demand(session, other) for other in QUEUES}
    job, _ = submit_job(session, kind, {}, [NewShard({}), NewShard({})], job_id=uuid.uuid4())
    session.flush()
    assert {q: demand(session, q) - before[q] for q in QUEUES} == {
        q: 2 * (q == queue) for q in QUEUES
    }

    def claim() -> Claim:
        taken = claim_shard(session, job.id, worker="w", lease_seconds=30, max_attempts=3)
        assert taken is not None
        return taken

    first = claim()
    assert demand(session, queue) - before[queue] == 2
    finish_shard(session, first, {})
    assert demand(session, queue) - before[queue] == 1
    finish_shard(session, claim(), {})
    assert demand(session, queue) == before[queue]


def test_a_job_that_ended_needs_no_worker(session: Session) -> None:
    before = demand(session, "train")
    job, _ = submit_job(session, JobKind.train, {}, [NewShard({})], job_id=uuid.uuid4())
    fail_job(session, job.id, {"code": "x", "message": "", "param": None})
    assert demand(session, "train") == before
