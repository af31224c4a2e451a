"""Child processes that cannot outlive us, and files that survive a loss of power.

`python shared/process.py PID SIGNAL UID COMMAND…` becomes COMMAND, to which the kernel sends SIGNAL
when its parent PID dies. The kernel's death signal outlives exec. It is set here rather than
between fork and exec, where a process with threads must not run Python. Linux only; elsewhere
COMMAND runs without it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


def ending_with_us(
    command: Sequence[str], death_signal: int = signal.SIGTERM, uid: int | None = None
) -> list[str]:
    """The command of a child that gets `death_signal` when we die, and runs as user `uid`.

    The signal belongs to the *thread* that starts the child, so that thread must live as long as
    the child is wanted.
    """
    numbers = [os.getpid(), int(death_signal), os.getuid() if uid is None else uid]
    return [sys.executable, "-IS", __file__, *map(str, numbers), *command]


def main() -> None:
    parent, death_signal, uid = map(int, sys.argv[1:4])
    command = sys.argv[4:]
    if uid != os.getuid():  # first, for the kernel forgets a death signal when the user changes
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    die_with_parent(death_signal)
    if sys.platform == "linux" and os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and so by COMMAND after exec
        signal.signal(ignored, signal.SIG_DFL)
    os.execvp(command[0], command)


def die_with_parent(death_signal: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)


def sync(folder: Path) -> None:
    """Make all files below a folder, and their names, survive a loss of power."""
    for path in (folder, *folder.rglob("*")):
        fsync(path)


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's list of files, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
