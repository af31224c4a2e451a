"""Real processes: what is restarted, what is fatal, and that nothing is ever left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.cli.errors import StackError
from services.cli.machine import supervisor
from services.cli.machine.supervisor import Service, Supervisor
from tests.support.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).parents[4]

NOTE_PID = """
import os, pathlib, signal, subprocess, sys, time
from shared.process import ending_with_us
pathlib.Path({pids!r}, str(os.getpid())).touch()
"""
SLEEP = "time.sleep(600)"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
# As a worker does: work in a session of its own, which a signal to the group does not reach.
WITH_CHILD = """
subprocess.Popen({start}([sys.executable, '-c', {child!r}]), start_new_session=True)
"""

Run = Callable[..., subprocess.Popen[str]]


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Family:
    """All processes below a supervisor; each has noted its pid in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def code(self, body: str) -> str:
        return NOTE_PID.format(pids=str(self._folder)) + body

    def parent(self, child: str = SLEEP, then: str = SLEEP, start: str = "list") -> str:
        """Code of a process with a child in another session, whose command goes through `start`."""
        return self.code(WITH_CHILD.format(start=start, child=self.code(child)) + then)

    @property
    def born(self) -> list[int]:
        return [int(name) for name in os.listdir(self._folder)]

    @property
    def alive(self) -> list[int]:
        return [pid for pid in self.born if is_alive(pid)]


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path / "pids")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started: list[subprocess.Popen[str]] = []

    def start(*services: dict[str, Any]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("supervised.py")), str(tmp_path),
             json.dumps(services)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()  # a kill would leave the children that are not tied to their parents
        process.communicate(timeout=PATIENCE_SECONDS)


def wait_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopping_leaves_no_process(run: Run, family: Family, sig: signal.Signals) -> None:
    process = run(
        {"name": "plain", "code": family.code(SLEEP)},
        {"name": "parent", "code": family.parent(child=STUBBORN)},
        {"name": "data", "code": family.code(SLEEP), "stops_last": True},
    )
    wait_up(process)
    until(lambda: len(family.born) == 4, "all processes have started")
    process.send_signal(sig)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert f"stopped by {sig.name}" in out
    assert family.alive == []


def test_what_was_there_before_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; " + SLEEP])
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(Service("plain", [sys.executable, "-c", "import time; " + SLEEP]))
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_process_that_ignores_sigterm_is_killed(run: Run, family: Family) -> None:
    process = run({"name": "stubborn", "code": family.code(STUBBORN), "stop_timeout_s": 0.5})
    wait_up(process)
    until(lambda: family.born, "it has started")
    time.sleep(0.2)  # for its handler
    process.terminate()
    assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert family.alive == []


def test_killing_the_supervisor_leaves_no_process(run: Run, family: Family) -> None:
    process = run(
        {"name": "plain", "code": family.code(SLEEP)},
        {"name": "parent", "code": family.parent(start="ending_with_us")},
    )
    wait_up(process)
    until(lambda: len(family.born) == 3, "all processes have started")
    process.kill()
    until(lambda: not family.alive, "all processes have ended")


def test_what_ends_is_started_again_without_its_orphans(run: Run, family: Family) -> None:
    process = run({"name": "flaky", "code": family.parent(then="time.sleep(0.5); sys.exit(3)")})
    wait_up(process)
    until(lambda: len(family.born) >= 4, "it has been started twice")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("flaky exited with code 3; again in 1 s")
    assert len(family.alive) <= 2


def test_what_cannot_be_kept_running_ends_all_and_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_SECONDS", 0.1)
    before = psutil.Process().children()
    other = Service("other", [sys.executable, "-c", "import time; " + SLEEP])
    broken = Service("data", [sys.executable, "-c", "exit('disk is full')"])
    with Supervisor(tmp_path / "logs") as all_:
        all_.start(other, broken)
        with pytest.raises(StackError, match="data exited with code 1\n\ndisk is full"):
            all_.supervise()
    assert psutil.Process().children() == before


def test_a_process_that_does_not_start_ends_all_and_shows_its_log(run: Run, family: Family) -> None:
    process = run(
        {"name": "plain", "code": family.code(SLEEP)},
        {"name": "broken", "code": "exit('no such setting')", "ready": False},
    )
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "up\n" not in out
    assert "broken exited with code 1\n\nno such setting" in out
    assert family.alive == []


def test_a_process_that_is_not_ready_in_time_ends_all(run: Run, family: Family) -> None:
    process = run(
        {"name": "slow", "code": family.code(SLEEP), "ready": False, "ready_timeout_s": 0.5}
    )
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "slow is not ready after 0 s: nobody answers" in out
    assert family.alive == []
