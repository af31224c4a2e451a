"""Disturbances of a running iteration: kills at points, kills at random times, and more."""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import psutil
import redis

from tools.chaos.platform import ChaosPlatform, processes
from tools.chaos.points import Order

STAGES = ("generate", "judge", "train_job", "train", "register")
SKEWED = ("loop", "worker", "generate", "judge", "train_job", "generate-service")
LASTING = (
    *("loop", "worker", "inference"),
    *("coordinator-service", "generate-service", "judge-service", "train-service"),
)
AWAY_SECONDS = 3.0
MINUTE = 60.0
STOP_SECONDS = 30.0
Act = Callable[[ChaosPlatform], object]


@dataclass
class Disturbance:
    """Orders are given before the iteration starts; each act is done so many seconds after."""

    name: str
    orders: list[Order] = field(default_factory=list)
    acts: list[tuple[float, Act]] = field(default_factory=list)
    before: Act | None = None
    after: Act | None = None


def kills_at(points: list[str]) -> Iterator[Disturbance]:
    """Kill the process that passes each point, and there also a stage's parent."""
    for point in points:
        yield Disturbance(f"kill at {point}", [Order(point)])
        if point.startswith(tuple(f"{stage}:" for stage in STAGES)):
            yield Disturbance(f"kill parent at {point}", [Order(point, victim="parent")])


def random_kills(count: int, seconds: float, rng: random.Random) -> Iterator[Disturbance]:
    """Kill any running process, at one to three moments of an iteration."""
    for _ in range(count):
        moments = sorted(rng.uniform(0, seconds) for _ in range(rng.randint(1, 3)))
        acts = [(at, _kill_any(rng)) for at in moments]
        when = ", ".join(f"{at:.1f}" for at in moments)
        yield Disturbance(f"kill something after {when} s", acts=acts)


def _kill_any(rng: random.Random) -> Act:
    def kill(_: ChaosPlatform) -> str:
        name, process = rng.choice(processes())
        with suppress(psutil.NoSuchProcess):
            process.kill()
        return name

    return kill


def messages() -> Iterator[Disturbance]:
    for mode in ("twice", "late", "never"):

        def set_mode(platform: ChaosPlatform, mode: str = mode) -> None:
            (platform.folder / "messages").write_text(mode)

        yield Disturbance(f"messages {mode}", before=set_mode)


def servers(seconds: float, rng: random.Random) -> Iterator[Disturbance]:
    """Valkey emptied or away, Postgres away: for moments at random times, and for a minute."""

    def flush(platform: ChaosPlatform) -> None:
        redis.Redis.from_url(platform.valkey_url.replace("redis+socket", "unix")).flushall()

    def valkey_away(platform: ChaosPlatform, away: float) -> None:
        platform.valkey.stop()
        time.sleep(away)
        platform.valkey.start()

    def postgres_away(platform: ChaosPlatform, away: float) -> None:
        platform.postgres.stop()
        time.sleep(away)
        status = platform.status()
        platform.postgres.start()
        assert status == 503, f"without its database the coordinator answers {status}"

    for away in (AWAY_SECONDS, AWAY_SECONDS, MINUTE):
        at = rng.uniform(0, seconds)
        yield Disturbance(f"Valkey flushed after {at:.1f} s", acts=[(at, flush)])
        for name, act in (("Valkey", valkey_away), ("Postgres", postgres_away)):
            how = f"{name} away after {at:.1f} s for {away:.0f} s"
            yield Disturbance(how, acts=[(at, partial(act, away=away))])


def stops(seconds: float, rng: random.Random) -> Iterator[Disturbance]:
    """An orderly stop of each process, which has 30 s for it."""

    def stop(platform: ChaosPlatform, role: str) -> None:
        for name, process in processes():
            if name == role:
                process.terminate()
                process.wait(STOP_SECONDS)

    for role in LASTING:
        at = rng.uniform(0, seconds)
        name = f"SIGTERM to {role} after {at:.1f} s"
        yield Disturbance(name, acts=[(at, partial(stop, role=role))])


def suspensions(points: list[str]) -> Iterator[Disturbance]:
    """A stage and its worker sleep past the lease just before they finish a shard."""
    for point in points:
        if point.endswith(": before finish") or "rename to epoch" in point:
            yield Disturbance(f"suspend at {point}", [Order(point, action="stop")])


def skews() -> Iterator[Disturbance]:
    for role in SKEWED:
        for seconds in (-60, 60):

            def set_clock(
                platform: ChaosPlatform, role: str = role, seconds: int = seconds
            ) -> None:
                (platform.folder / "skew.json").write_text(json.dumps({role: seconds}))
                _begin_anew(role)

            def reset(platform: ChaosPlatform, role: str = role) -> None:
                (platform.folder / "skew.json").unlink()
                _begin_anew(role)

            yield Disturbance(f"clock of {role} {seconds:+d} s", before=set_clock, after=reset)


def _begin_anew(role: str) -> None:
    """Stages begin by themselves."""
    for name, process in processes():
        if name == role and role not in STAGES:
            process.send_signal(signal.SIGTERM)
