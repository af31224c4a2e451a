"""Telling a machine that ran out of memory or disk from other failures."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

OUT_OF_MEMORY = 72
DISK_FULL = 73
"""Exit statuses of a process that ended so: a full disk takes no error file."""
TORCH_ERROR = "OutOfMemoryError"
WORDS = ("can't allocate memory", "not enough memory")
"""Torch's words on a CPU for a lack of memory."""
NO_SPACE = ("No space left on device", "os error 28", "iostream error", "unexpected pos ")
"""Words for a full disk of libc, safetensors and, the last two, `torch.save`."""
VMSTAT = Path("/proc/vmstat")


def exit_status(error: BaseException) -> int | None:
    """The status to exit with, or None for an error of another kind."""
    for cause in _causes(error):
        text = str(cause)
        no_space = getattr(cause, "errno", None) == errno.ENOSPC
        if no_space or any(words in text for words in NO_SPACE):
            return DISK_FULL
        no_memory = getattr(cause, "errno", None) == errno.ENOMEM
        if (
            isinstance(cause, MemoryError)
            or no_memory
            or type(cause).__name__ == TORCH_ERROR  # few stages import torch
            or any(words in text for words in WORDS)
        ):
            return OUT_OF_MEMORY
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def tells_of_no_memory(log: str) -> bool:
    """Tell by its log that a process ran out of memory."""
    return any(words in log for words in (TORCH_ERROR, *WORDS))


def disk_full_message(folder: Path) -> str:
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize / 2**20
    return f"the disk of {folder} is full ({free:.0f} MiB free); free some space and resume"


def oom_kills() -> int:
    """Number of processes that the kernel has killed for memory since it started; 0 if unknown."""
    try:
        fields = dict(line.split() for line in VMSTAT.read_text().splitlines())
    except OSError:
        return 0
    return int(fields.get("oom_kill", 0))
