"""Checks of memory, disks and shared memory."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from services.cli.doctor.finding import Finding, problem
from services.cli.machine.datadir import DataDir

GIB = 1024**3
MIN_MEMORY_GIB, MIN_DISK_GIB = 6, 5
"""Memory and disk that the demo needs. For larger models see `docs/operate.md`."""
MIN_SHARED_GIB = 1
"""Size of /dev/shm, which the processes of an engine, and of a training on several GPUs, share."""
SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
"""Folder with a container's own limits (cgroup version 2)."""


def examine(data: DataDir | None) -> Iterator[Finding]:
    """Check the machine. `data` is None for a deployed platform, which has no data folder."""
    yield _memory(0 if data is None else MIN_MEMORY_GIB)
    if data is not None:
        yield _disk("disk", data.root)
    if store := _given("MODEL_STORE"):
        yield _mounted(store) if data is None else _disk("model store", store)
    if logs := _given("LOG_DIR"):
        yield _disk("logs", logs)
    if SHARED_MEMORY.is_dir():
        yield _shared_memory()


def _given(name: str) -> Path | None:
    folder = os.environ.get(f"FORETHOUGHT_{name}")
    return Path(folder) if folder else None


def _memory(needed_gib: int) -> Finding:
    free = min(psutil.virtual_memory().available, _left_in_group()) / GIB
    detail = f"{free:.1f} GiB available"
    if free < needed_gib:
        return problem(
            "memory", detail, f"end other programs: the demo needs about {needed_gib} GiB"
        )
    return Finding("memory", detail)


def _left_in_group() -> float:
    """Return the bytes left of a container's memory limit. Cached files do not count as used."""
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # There is no limit, or it is `max`.
        return math.inf
    return limit - used + int(stat["inactive_file"])


def _mounted(folder: Path) -> Finding:
    if not os.path.ismount(folder) and not os.access(folder, os.W_OK):
        return Finding("model store", f"none at {folder}: only workers and inference need it")
    return _disk("model store", folder)


def _disk(subject: str, folder: Path) -> Finding:
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK):
        fix = f"make it writable for uid {os.geteuid()}, or choose another folder"
        return problem(subject, f"{existing} is read-only", fix)
    free = shutil.disk_usage(existing).free / GIB
    detail = f"{free:.1f} GiB free at {existing}"
    if free < MIN_DISK_GIB:
        return problem(subject, detail, f"free some space: the demo needs about {MIN_DISK_GIB} GiB")
    return Finding(subject, detail)


def _shared_memory() -> Finding:
    total = shutil.disk_usage(SHARED_MEMORY).total / GIB
    detail = f"{total:.1f} GiB at {SHARED_MEMORY}"
    if total < MIN_SHARED_GIB:
        fix = "start the container with --shm-size 1g, or 8g for several GPUs: engines need it"
        return Finding("shared memory", detail, fix)
    return Finding("shared memory", detail)
