"""Runs one iteration again and again, each time disturbed in another way, and compares each result
with the undisturbed one."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil

from services.cli.api.client import Object
from tools.chaos.disturbances import Disturbance
from tools.chaos.platform import SHARD_OUTPUTS, ChaosPlatform


@dataclass(frozen=True)
class Reference:
    """The undisturbed iteration."""

    manifest: Object
    seconds: float
    sampled: int
    """Number of outputs that the engines were asked for."""
    points: list[str]
    """Points in the order in which they were passed first."""


@dataclass(frozen=True)
class Outcome:
    kills: int
    problem: str | None
    """The difference of its manifest, or the reason why it did not succeed."""
    lost: int
    doubled: int
    undone: int
    """Orders whose point nobody passed, and acts for which the iteration ended too soon."""
    again: float
    """Outputs that were sampled again, counted in shards."""
    seconds: float
    recovery: float
    """Seconds by which it took longer than the undisturbed one."""


def reference(platform: ChaosPlatform, runs: int = 2) -> Reference:
    """Measure the last of some undisturbed iterations, which must be the same: the first also
    pays for what is used for the first time."""
    manifests, seconds, points = [], 0.0, []
    for _ in range(runs):
        platform.forget()
        started = time.monotonic()
        iteration = platform.ended(platform.start())
        assert iteration["status"] == "succeeded", iteration["error"]
        seconds = time.monotonic() - started
        manifests.append(platform.manifest(iteration["id"]))
        points = list(dict.fromkeys(p.point for p in platform.passages()))
    assert manifests[0]["parts"] == manifests[-1]["parts"], "undisturbed runs differ"
    return Reference(manifests[-1], seconds, platform.sampled(), points)


def disturb(platform: ChaosPlatform, expected: Reference, how: Disturbance) -> Outcome:
    platform.forget()
    if how.before is not None:
        how.before(platform)
    for order in how.orders:
        platform.order(order)
    started = time.monotonic()
    run_id = platform.start()
    acts, kills, faults = _acts(platform, how, started), 0, list[str]()
    sleeper = _Sleeper(platform)

    def meanwhile() -> None:
        nonlocal kills
        sleeper.look()
        while acts and acts[0][0] <= time.monotonic():
            try:
                kills += acts.pop(0)[1]() is not None
            except (AssertionError, psutil.TimeoutExpired) as fault:
                faults.append(str(fault))

    iteration = platform.ended(run_id, meanwhile)
    sleeper.wake()
    seconds = time.monotonic() - started
    if how.after is not None:
        how.after(platform)
    taken = len(platform.taken())
    killed = taken if any(order.action == "kill" for order in how.orders) else 0
    problem, lost, doubled = _compare(platform, expected, iteration)
    return Outcome(
        kills=kills + killed,
        problem="; ".join(faults) or problem,
        lost=lost,
        doubled=doubled,
        undone=len(how.orders) - taken + len(acts),
        again=(platform.sampled() - expected.sampled) / SHARD_OUTPUTS,
        seconds=seconds,
        recovery=seconds - expected.seconds,
    )


def _acts(
    platform: ChaosPlatform, how: Disturbance, started: float
) -> list[tuple[float, Callable[[], object]]]:
    return [(started + at, partial(act, platform)) for at, act in how.acts]


class _Sleeper:
    """Puts all from a process that has stopped up to its worker to sleep, and wakes them after the
    lease."""

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
                    self._asleep = [process, *_up_to_worker(process)]
                    self._wake_at = time.monotonic() + 2 * self._platform.lease_seconds + 2
        for process in self._asleep:
            os.kill(process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        for process in self._asleep:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        self._asleep = []


def _up_to_worker(process: psutil.Process) -> list[psutil.Process]:
    """The parents of a training up to its worker: the stage in between keeps the lease."""
    parents = process.parents()
    workers = [n for n, p in enumerate(parents, 1) if "workers.tasks" in p.cmdline()]
    return parents[: max(workers, default=0)]


def _compare(
    platform: ChaosPlatform, expected: Reference, iteration: Object
) -> tuple[str | None, int, int]:
    """The difference, and the numbers of rows that are lost and doubled."""
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
