"""Starts processes in order, keeps them running, and stops them all.

Single-threaded on purpose: the kernel's death signal belongs to the thread that started a child.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from services.cli.errors import StackError
from services.cli.machine.processes import (
    adopt_orphans,
    kill_all,
    signal_group,
    spawn,
    strays,
    tail,
)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.1
LONG_LIFE_SECONDS = 10.0
"""A process that lived this long has started well: its count of failures begins anew."""
MAX_SHORT_LIVES = 6
MAX_BACKOFF_SECONDS = 30.0


class Stopped(BaseException):
    """Somebody asked us to stop; raised in the main thread wherever it is."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into `Stopped` inside the block, once."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        for sig in STOP_SIGNALS:  # the stopping itself is not to be interrupted
            signal.signal(sig, signal.SIG_IGN)
        raise Stopped(signal.Signals(signum).name)

    before = {sig: signal.signal(sig, stop) for sig in STOP_SIGNALS}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


@dataclass(frozen=True)
class Service:
    """One process: how to start it, to know that it is ready, and to stop it."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None
    ready: Callable[[], None] | None = None
    """Raises as long as the service is not ready; None: ready once started."""
    stops_last: bool = False
    """The others need it until their own end."""
    stop_signal: signal.Signals = signal.SIGTERM
    pass_fds: Sequence[int] = ()
    uid: int | None = None
    ready_timeout_s: float = 90.0
    stop_timeout_s: float = 10.0


@dataclass
class _Running:
    service: Service
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    short_lives: int = 0
    retry_at: float | None = None
    """When to start it again after it ended; None while it runs."""


class Supervisor:
    """Use as a context manager: leaving it, for whatever reason, stops everything it started."""

    def __init__(self, log_dir: Path, say: Callable[[str], None] = print) -> None:
        self._log_dir = log_dir
        self._say = say
        self._running: dict[str, _Running] = {}
        self._stopping = threading.Event()

    def __enter__(self) -> "Supervisor":
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._others = {child.pid for child in psutil.Process().children()}
        adopt_orphans()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def start(self, *services: Service) -> None:
        """Start these together and return when all are ready.

        Raises:
            StackError: one ended, or was not ready in time; the end of its log is in the message.
        """
        for service in services:
            self._begin_log(service.name)
            self._running[service.name] = _Running(service, self._spawn(service))
        for service in services:
            self._wait_ready(self._running[service.name])

    def run_once(self, service: Service) -> None:
        """Run a command to its end; `StackError` unless it exits with 0."""
        self._begin_log(service.name)
        process = self._spawn(service)
        self._running[service.name] = _Running(service, process)
        try:
            code = process.wait()
        finally:
            if process.poll() is not None:
                del self._running[service.name]
        if code != 0:
            raise StackError(self._ended(service.name, code))

    def supervise(self) -> None:
        """Restart what ends, until `stop`; `StackError` when something cannot be kept running."""
        while not self._stopping.wait(POLL_SECONDS):
            for running in self._running.values():
                self._check(running)

    def stop(self) -> None:
        """Stop all: first what uses the data servers, then these. Nothing of ours is left."""
        self._stopping.set()
        for last in (False, True):
            some = [r for r in self._running.values() if r.service.stops_last is last]
            for running in some:
                signal_group(running.process, running.service.stop_signal)
            deadline = time.monotonic() + max((r.service.stop_timeout_s for r in some), default=0)
            for running in some:
                self._wait_end(running.process, deadline)
            self._kill_strays()
        self._running.clear()

    def _wait_end(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            signal_group(process, signal.SIGKILL)
            process.wait()

    def _kill_strays(self) -> None:
        """Kill orphans: what a process of ours has started and not stopped before its own end."""
        ours = {r.process.pid for r in self._running.values()}
        kill_all(strays(ours | self._others))

    def _begin_log(self, name: str) -> None:
        log = self.log(name)
        if log.exists():
            log.replace(log.with_suffix(".log.old"))

    def _spawn(self, service: Service) -> subprocess.Popen[bytes]:
        return spawn(
            service.command,
            self.log(service.name),
            env=service.env,
            pass_fds=service.pass_fds,
            death_signal=service.stop_signal,
            uid=service.uid,
        )

    def _wait_ready(self, running: _Running) -> None:
        service = running.service
        deadline = time.monotonic() + service.ready_timeout_s
        while True:
            code = running.process.poll()
            if code is not None:
                raise StackError(self._ended(service.name, code))
            try:
                if service.ready is not None:
                    service.ready()
                return
            except Exception as error:  # whatever a client library raises means: not ready yet
                if time.monotonic() > deadline:
                    problem = f"is not ready after {service.ready_timeout_s:.0f} s: {error}"
                    raise StackError(self._with_log(service.name, problem)) from error
            time.sleep(POLL_SECONDS)

    def _check(self, running: _Running) -> None:
        now = time.monotonic()
        if running.retry_at is not None:
            if now >= running.retry_at:
                running.process = self._spawn(running.service)
                running.started, running.retry_at = now, None
            return
        code = running.process.poll()
        if code is None:
            return
        name = running.service.name
        self._kill_strays()
        lived = now - running.started
        running.short_lives = 1 if lived > LONG_LIFE_SECONDS else running.short_lives + 1
        if running.short_lives >= MAX_SHORT_LIVES:
            raise StackError(self._ended(name, code))
        delay = min(2.0 ** (running.short_lives - 1), MAX_BACKOFF_SECONDS)
        running.retry_at = now + delay
        self._say(f"{name} {_how(code)}; again in {delay:.0f} s (see {self.log(name)})")

    def _ended(self, name: str, code: int) -> str:
        return self._with_log(name, _how(code))

    def _with_log(self, name: str, problem: str) -> str:
        end = tail(self.log(name)) or "(it wrote nothing)"
        return f"{name} {problem}\n\n{end}\n\nWhole log: {self.log(name)}"


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    return f"was ended by {signal.Signals(-code).name}"
