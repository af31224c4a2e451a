"""A dozen of the campaign's disturbances, and cancelling: `make chaos` does them all."""

import time
from collections.abc import Iterator

import pytest

from services.cli.api.client import Object
from tests.support.waiting import until
from tools.chaos import disturbances
from tools.chaos.campaign import Reference, disturb, reference
from tools.chaos.disturbances import Disturbance
from tools.chaos.platform import ChaosPlatform, chaos_platform, processes
from tools.chaos.points import Order

pytestmark = pytest.mark.slow

KILLS = {
    "up to the last judgment": [
        "coordinator-service: after commit of a request to",
        "generate-service: after commit of a request to audit_events+jobs",
        "worker: before swap",
        "generate: before commit of leases._finish to completions",
        "generate: after commit of leases._finish to completions",
        "judge: before commit of leases._finish",
    ],
    "before and in training": [
        "loop: before commit of steps._make_pairs to",
        "loop: before message train",
        "train: after rename to epoch-1",
    ],
    # Of their own: a third end of one training would quarantine it.
    "up to the end": [
        "train: after rename to complete.json",
        "train_job: before commit of leases._finish",
        "train-service: after commit of a request to audit_events+models",
    ],
}
CANCEL_SECONDS = 10.0


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosPlatform]:
    with chaos_platform(tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(platform: ChaosPlatform) -> Reference:
    return reference(platform, runs=1)  # whatever is the same as this repeats it


def check(platform: ChaosPlatform, undisturbed: Reference, how: Disturbance) -> None:
    outcome = disturb(platform, undisturbed, how)
    assert outcome.problem is None, f"{how.name}: {outcome.problem}"
    assert outcome.undone == 0, f"{how.name}: nobody passed there"
    # For each kill the shard about to be committed, and the one that keeps the engine full.
    most = 2 * max(1, outcome.kills)
    assert outcome.again <= most, f"{how.name}: sampled {outcome.again} shards again"


@pytest.mark.parametrize("when", KILLS)
def test_kills_change_nothing(platform: ChaosPlatform, undisturbed: Reference, when: str) -> None:
    points = [_point(undisturbed, prefix) for prefix in KILLS[when]]
    check(platform, undisturbed, Disturbance(f"kills {when}", [Order(p) for p in points]))


def _point(undisturbed: Reference, prefix: str) -> str:
    found = next((p for p in undisturbed.points if p.startswith(prefix)), None)
    assert found is not None, f"no point {prefix!r} among\n" + "\n".join(undisturbed.points)
    return found


def test_a_worker_that_wakes_up_late_writes_nothing(
    platform: ChaosPlatform, undisturbed: Reference
) -> None:
    order = Order("generate: before finish", action="stop")
    check(platform, undisturbed, Disturbance("suspended past its lease", [order]))


def test_cancelling_ends_its_processes_and_resuming_goes_on(
    platform: ChaosPlatform, undisturbed: Reference
) -> None:
    platform.forget()
    run_id = platform.start()
    for stage in ("generate", "train"):
        iteration = _running(platform, run_id, stage)
        started = time.monotonic()
        for _ in range(2):
            assert platform.client.cancel(iteration["id"])["status"] == "cancelled"
        until(lambda: not _stages(), "its processes have ended", CANCEL_SECONDS)
        assert time.monotonic() - started < CANCEL_SECONDS
        platform.client.resume(iteration["id"])

    ended = platform.ended(run_id)
    assert ended["status"] == "succeeded", ended["error"]
    assert platform.manifest(ended["id"])["parts"] == undisturbed.manifest["parts"]


def _running(platform: ChaosPlatform, run_id: str, stage: str) -> Object:
    """The run's iteration once a process works on that stage."""
    until(lambda: stage in _stages(), f"{stage} is under way", 60)
    return platform.client.iterations(run_id)[0]


def _stages() -> set[str]:
    return {name for name, _ in processes()} & set(disturbances.STAGES)
