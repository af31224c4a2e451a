"""Runs one iteration again and again, each time disturbed in another way, and compares what came
of it with the undisturbed one."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil
import psycopg

from services.cli.client import Object
from tests.chaos.disturbances import Disturbance
from tests.chaos.platform import ChaosPlatform
from tests.chaos.points import Passage


@dataclass(frozen=True)
class Reference:
    """The undisturbed iteration."""

    manifest: Object
    seconds: float
    points: list[str]
    """In the order in which they were passed first."""


@dataclass(frozen=True)
class Outcome:
    name: str
    kills: int
    status: str
    problem: str | None
    """How its manifest differs, or why it did not succeed."""
    lost: int
    doubled: int
    redone: int
    """Shards that were begun again."""
    seconds: float
    recovery: float | None
    """From the kill to the next sign of a process of that role."""


def reference(platform: ChaosPlatform) -> Reference:
    """Of two undisturbed iterations, which must be the same; the second is not the first to use
    anything."""
    manifests, seconds, points = [], 0.0, []
    for _ in range(2):
        platform.forget()
        started = time.monotonic()
        iteration = platform.ended(platform.start())
        assert iteration["status"] == "succeeded", iteration["error"]
        seconds = time.monotonic() - started
        manifests.append(platform.manifest(iteration["id"]))
        points = list(dict.fromkeys(p.point for p in platform.passages()))
    assert manifests[0]["parts"] == manifests[1]["parts"], "undisturbed runs differ"
    return Reference(manifests[0], seconds, points)


def disturb(platform: ChaosPlatform, expected: Reference, how: Disturbance) -> Outcome:
    platform.forget()
    if how.before is not None:
        how.before(platform)
    for order in how.orders:
        platform.order(order)
    started = time.monotonic()
    run_id = platform.start()
    acts, kills = _acts(platform, how, started), []
    sleeper = _Sleeper(platform)

    def meanwhile() -> None:
        sleeper.look()
        while acts and acts[0][0] <= time.monotonic():
            if acts.pop(0)[1]() is not None:
                kills.append(time.time())

    iteration = platform.ended(run_id, meanwhile)
    sleeper.wake()
    seconds = time.monotonic() - started
    if how.after is not None:
        how.after(platform)
    taken = [path.stat().st_ctime for path in platform.taken()]
    kinds = {order.action for order in how.orders}
    problem, lost, doubled = _compare(platform, expected, iteration)
    return Outcome(
        name=how.name,
        kills=len(kills) + (len(taken) if "kill" in kinds else 0),
        status=iteration["status"],
        problem=problem,
        lost=lost,
        doubled=doubled,
        redone=_redone(platform, iteration["id"]),
        seconds=seconds,
        recovery=_recovery(platform.passages(), taken, how) if "kill" in kinds else None,
    )


def _acts(
    platform: ChaosPlatform, how: Disturbance, started: float
) -> list[tuple[float, Callable[[], object]]]:
    return [(started + at, partial(act, platform)) for at, act in how.acts]


class _Sleeper:
    """Puts the worker of a stage that has stopped to sleep, too, and wakes both after the lease."""

    def __init__(self, platform: ChaosPlatform) -> None:
        self._platform = platform
        self._asleep: list[psutil.Process] = []
        self._wake_at = 0.0

    def look(self) -> None:
        if self._asleep:
            if time.monotonic() > self._wake_at:
                self.wake()
            return
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    self._asleep = [process, *_worker_of(process)]
                    self._wake_at = time.monotonic() + 2 * self._platform.lease_seconds + 2
        for process in self._asleep:
            os.kill(process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        for process in self._asleep:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        self._asleep = []


def _worker_of(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.parents() if "workers.tasks" in p.cmdline()]


def _compare(
    platform: ChaosPlatform, expected: Reference, iteration: Object
) -> tuple[str | None, int, int]:
    """What differs, and how many rows there are too few and too many."""
    if iteration["status"] != "succeeded":
        return f"{iteration['status']}: {iteration['error']}", 0, 0
    manifest = platform.manifest(iteration["id"])
    differing = [
        name for name, part in expected.manifest["parts"].items() if manifest["parts"][name] != part
    ]
    differences = [
        manifest["parts"][name]["rows"] - part["rows"]
        for name, part in expected.manifest["parts"].items()
    ]
    problem = f"differs in {', '.join(differing)}" if differing else None
    return problem, -sum(min(0, d) for d in differences), sum(max(0, d) for d in differences)


def _redone(platform: ChaosPlatform, iteration_id: str) -> int:
    query = (
        "SELECT coalesce(sum(attempt - 1), 0) FROM shards JOIN jobs ON jobs.id = job_id"
        " WHERE iteration_id = %s AND attempt > 1"
    )
    with psycopg.connect(platform.database_url) as connection:
        row = connection.execute(query, [iteration_id]).fetchone()
    assert row is not None
    return int(row[0])


def _recovery(passages: list[Passage], taken: list[float], how: Disturbance) -> float | None:
    if not taken:
        return None
    role = how.orders[0].point.partition(":")[0]
    return next((p.at - taken[0] for p in passages if p.role == role and p.at > taken[0]), None)
