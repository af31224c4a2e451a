"""Inside each process of a platform under test: names the points it passes, and obeys orders.

A point is a place where dying is worst: before and after each commit that writes, each message,
each rename and each swap of weights, and before a shard is finished. The product knows nothing of
it; `install` wraps what it calls. Standard library only, for it runs before anything else is
imported.

In the folder `CHAOS_FOLDER`:
`passed`     a line for each passage: time, pid, point
`orders/`    files of an `Order`; who passes its point first takes it to `taken/` and carries it out
`messages`   what becomes of messages: `twice`, `late` or `never` (the first that a process sends
             for a job, which is left to the sweeper)
`skew.json`  seconds by which a role's clock is off
"""

import datetime
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("CHAOS_FOLDER", "."))
STORE = os.environ.get("FORETHOUGHT_MODEL_STORE", "")
PRODUCT = ("services.", "workers.", "shared.", "__main__")
LATE_SECONDS = 3.0
WRITES = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")
SESSIONS = ("shared.db.engine", "shared.web.session")
"""Modules that make transactions for others."""
SERVICE = re.compile(r"services\.(\w+)\.app:app")
ROLES = {
    "services.coordinator.loop": "loop",
    "workers.tasks": "worker",
    "workers.engine.inference": "inference",
    "workers.generate.stage": "generate",
    "workers.judge.stage": "judge",
    "workers.train.job": "train_job",
    "workers.train.launch": "train",
    "workers.train.train": "train",
    "workers.models.register": "register",
    "workers.models.prune": "prune",
}
"""Of processes that run a module, by its name; a service is named after its package."""


@dataclass(frozen=True)
class Order:
    """An action to be carried out at a point."""

    point: str
    action: str = "kill"
    """`kill` or `stop` (until SIGCONT)."""
    victim: str = "self"
    """`self`, or `parent`: a stage's worker, a training's stage."""


@dataclass(frozen=True)
class Passage:
    at: float
    pid: int
    point: str


def role(command: list[str]) -> str:
    """The role of a process by its command line: `generate-service`, `loop`, `worker`, `judge`."""
    for word in command:
        if word in ROLES:
            return ROLES[word]
        if service := SERVICE.fullmatch(word):
            return f"{service[1]}-service"
    return "other"


ROLE = role(sys.orig_argv)


def passing(name: str) -> None:
    point = f"{ROLE}: {name}"
    with (FOLDER / "passed").open("a") as file:
        file.write(f"{time.clock_gettime(time.CLOCK_REALTIME)} {os.getpid()} {point}\n")
    for path in (FOLDER / "orders").iterdir():
        try:
            order = Order(**json.loads(path.read_text()))
            if order.point == point:
                path.rename(FOLDER / "taken" / path.name)
                _carry_out(order)
        except FileNotFoundError:
            continue  # another process took it


def _carry_out(order: Order) -> None:
    number = signal.SIGKILL if order.action == "kill" else signal.SIGSTOP
    os.kill(os.getpid() if order.victim == "self" else os.getppid(), number)


def give(folder: Path, order: Order) -> None:
    """Put an order where processes look for it."""
    name = f"{time.time_ns()}.json"
    aside = folder / name
    aside.write_text(json.dumps(asdict(order)))
    aside.rename(folder / "orders" / name)


def install() -> None:
    skew = FOLDER / "skew.json"
    if skew.exists() and (seconds := json.loads(skew.read_text()).get(ROLE)):
        _skew_clock(seconds)
    if ROLE == "train":
        # On two cores, one training of about 150 rounded otherwise, with nothing done to it.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.rename, os.replace = _around_rename(os.rename), _around_rename(os.replace)
    sys.meta_path.insert(0, _AfterImport())


def _skew_clock(seconds: float) -> None:
    real, right = datetime.datetime, time.time

    class Skewed(real):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.now(tz) + datetime.timedelta(seconds=seconds)

    datetime.datetime = Skewed  # type: ignore[misc]
    time.time = lambda: right() + seconds


def _around_rename(rename: Callable[..., None]) -> Callable[..., None]:
    def wrapped(source: Any, target: Any, **kwargs: Any) -> None:
        path = os.fspath(target)
        if not STORE or not str(path).startswith(STORE):
            rename(source, target, **kwargs)
            return
        name = re.sub(r"[0-9a-f]{8,}", "X", os.path.basename(path))
        passing(f"before rename to {name}")
        rename(source, target, **kwargs)
        passing(f"after rename to {name}")

    return wrapped


class _AfterImport(MetaPathFinder):
    """Calls the hook of a module once it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        hook = HOOKS.get(name)
        spec = PathFinder.find_spec(name, path, target) if hook else None
        if hook is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            hook(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _hook_commits(orm: ModuleType) -> None:
    from sqlalchemy import Engine, event  # noqa: PLC0415 (too early before)

    @event.listens_for(Engine, "before_cursor_execute")
    def note(connection: Any, _: Any, statement: str, *__: Any) -> None:
        if written := WRITES.match(statement):
            connection.info.setdefault("writes", set()).add(written[2])

    @event.listens_for(Engine, "rollback")
    def forget(connection: Any) -> None:
        connection.info.pop("writes", None)

    @event.listens_for(orm.Session, "before_commit")
    def before(session: Any) -> None:
        session.flush()
        writes = session.connection().info.pop("writes", None)
        if writes and not session.in_nested_transaction():
            session.info["point"] = f"commit of {_caller()} to {'+'.join(sorted(writes))}"
            passing(f"before {session.info['point']}")

    @event.listens_for(orm.Session, "after_commit")
    def after(session: Any) -> None:
        if point := session.info.pop("point", None):
            passing(f"after {point}")


def _caller() -> str:
    """The product's function that commits; a request's commit belongs to none."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PRODUCT) and module not in SESSIONS:
            name = ROLE if module == "__main__" else module.rpartition(".")[2]
            return f"{name}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a request"


def _hook_messages(broker: ModuleType) -> None:
    send = broker.send
    lost = set()

    def wrapped(messages: Any) -> None:
        for kind, job_id in messages:
            passing(f"before message {kind.value}")
            one = [(kind, job_id)]
            mode = FOLDER / "messages"
            match mode.read_text() if mode.exists() else "once":
                case "twice":
                    send(one)
                    send(one)
                case "late":
                    threading.Timer(LATE_SECONDS, send, (one,)).start()
                case "never" if job_id not in lost:
                    lost.add(job_id)
                case _:
                    send(one)
            passing(f"after message {kind.value}")

    broker.send = wrapped  # type: ignore[attr-defined]


def _hook_leases(leases: ModuleType) -> None:
    finish = leases.Leases.finish

    def wrapped(self: Any, *args: Any) -> None:
        passing("before finish")
        finish(self, *args)

    leases.Leases.finish = wrapped


def _hook_swaps(engine: ModuleType) -> None:
    swap = engine.ManagedEngine._swap

    def wrapped(self: Any, model: Any) -> None:
        passing("before swap")
        swap(self, model)
        passing("after swap")

    engine.ManagedEngine._swap = wrapped


HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "sqlalchemy.orm": _hook_commits,
    "shared.jobs.broker": _hook_messages,
    "workers.leases": _hook_leases,
    "workers.engine.engine": _hook_swaps,
}
