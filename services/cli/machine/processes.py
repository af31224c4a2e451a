"""Child processes that cannot outlive us.

Each child gets a signal from the kernel when we die (`shared/process.py`; Linux). Orphans of a dead
child become our children and are found here: an engine that hangs does not heed its signal, and
holds its port and the GPU's memory while its owner is started again.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from shared.process import ending_with_us

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has died, so that they can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    death_signal: int = signal.SIGTERM,
    uid: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ending_with_us(command, death_signal, uid),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
        )


def strays(known: Iterable[int]) -> list[psutil.Process]:
    """Our living children that we did not start ourselves, with all their descendants."""
    ours = set(known)
    found = []
    for child in psutil.Process().children():
        if child.pid not in ours:
            found += [child, *descendants(child)]
    return found


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, and wait up to 5 s until they are gone. psutil refuses a pid that was given to
    another."""
    doomed = list(processes)
    for process in doomed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(doomed, timeout=5.0)


def signal_group(process: subprocess.Popen[bytes], sig: int) -> None:
    """Signal a process started by `spawn` and everything that stayed in its group."""
    if process.poll() is not None:
        return
    try:
        os.killpg(process.pid, sig)
    except ProcessLookupError:
        return


def tail(log: Path) -> str:
    """The last 15 lines of a log file; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-15:])


def start_companion(
    command: Sequence[str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that shares our terminal's output but not its Ctrl-C, and ends with us."""
    return subprocess.Popen(
        ending_with_us(command),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=pass_fds,
    )
