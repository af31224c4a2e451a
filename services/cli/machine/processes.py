"""Child processes that cannot outlive us.

Three nets, each for what the one before misses: a child gets a signal from the kernel when we die
(Linux); orphans of a dead child become our children and are found here; and a guardian process
(`services.cli.machine.guardian`) ends everything that is left when we were killed outright.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has died, so that they can be found."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent(sig: int) -> Callable[[], None]:
    parent = os.getpid()

    def prepare() -> None:
        # Runs between fork and exec. The kernel signals the child when the thread that forked it
        # ends, so children must be started from the main thread.
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


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
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=pass_fds,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            start_new_session=True,
            preexec_fn=_die_with_parent(death_signal),
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
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=pass_fds,
        preexec_fn=_die_with_parent(signal.SIGTERM),
    )
