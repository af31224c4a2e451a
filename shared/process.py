"""`python shared/process.py PID COMMAND…`: become COMMAND, but get SIGTERM when the parent dies.

The kernel's death signal outlives exec. Set here rather than between fork and exec, where a
process with threads must not run Python. It belongs to the *thread* that started us, so that
thread must live as long as we are wanted. Linux only; elsewhere COMMAND runs without it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(signal.SIGTERM)
    if sys.platform == "linux" and os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execv(command[0], command)


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
