"""Ends what is left of the platform when its supervisor was killed outright (SIGKILL).

`python -m services.cli.machine.guardian PID FOLDER` watches the process tree below PID and
waits for the end of its standard input, which PID holds open. When PID stopped everything itself it
has written `done` before; else what was below it gets SIGTERM and then SIGKILL, and FOLDER (the one
with the sockets) is removed.
"""

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from services.cli.machine.processes import descendants, kill_all

GRACE_SECONDS = 15.0
POLL_INTERVAL_S = 2.0


class Guardian:
    """The supervisor's end of the pipe."""

    def __init__(self, run_dir: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "services.cli.machine.guardian",
            str(os.getpid()),
            str(run_dir),
        ]
        # In a session of its own, so that a signal to our terminal or group misses it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def dismiss(self) -> None:
        """Tell it that everything has been stopped."""
        try:
            self._process.communicate(b"done", timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def watch(supervisor: psutil.Process) -> set[psutil.Process]:
    """Wait for the supervisor's end; returns what lived below it, nothing after a tidy stop."""
    below: set[psutil.Process] = set()
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_INTERVAL_S)
        if readable:
            return set() if sys.stdin.read() == "done" else below
        below = set(descendants(supervisor))


def end(below: set[psutil.Process]) -> None:
    """Stop these and what they have started since; we ourselves are among them."""
    this = psutil.Process()
    doomed = {p for top in below for p in (top, *descendants(top))} - {this}
    for process in doomed:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(_lives, doomed)) and time.monotonic() < deadline:
        time.sleep(0.1)
    alive = filter(_lives, doomed)
    kill_all({p for top in alive for p in (top, *descendants(top))})


def _lives(process: psutil.Process) -> bool:
    """A zombie does not: where nobody reaps orphans, as in some containers, it stays for ever."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main(pid: int, run_dir: Path) -> None:
    end(watch(psutil.Process(pid)))
    shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
