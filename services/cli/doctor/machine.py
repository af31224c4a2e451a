"""Memory and room on disks, as what is about to be run needs them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from services.cli.datadir import DataDir
from services.cli.doctor.finding import Finding, problem

GIB = 1024**3
MIN_MEMORY_GIB, MIN_DISK_GIB = 6, 5
"""What the demo takes. For larger models `docs/operate.md` has the arithmetic."""
MIN_SHARED_GIB = 1
"""Of /dev/shm, through which the processes of an engine talk, and those of a training on several
GPUs."""
SHARED_MEMORY = Path("/dev/shm")


def examine(data: DataDir) -> Iterator[Finding]:
    yield _memory()
    folders = {"disk": data.root, "model store": _given("MODEL_STORE"), "logs": _given("LOG_DIR")}
    for subject, folder in folders.items():
        if folder is not None:
            yield _disk(subject, folder)
    if SHARED_MEMORY.is_dir():
        yield _shared_memory()


def _given(name: str) -> Path | None:
    folder = os.environ.get(f"FORETHOUGHT_{name}")
    return Path(folder) if folder else None


def _memory() -> Finding:
    free = psutil.virtual_memory().available / GIB
    detail = f"{free:.1f} GiB available"
    if free < MIN_MEMORY_GIB:
        return problem("memory", detail, f"the demo needs about {MIN_MEMORY_GIB} GiB")
    return Finding("memory", detail)


def _disk(subject: str, folder: Path) -> Finding:
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK):
        fix = f"make it writable for uid {os.geteuid()}, or choose another folder"
        return problem(subject, f"{existing} is read-only", fix)
    free = shutil.disk_usage(existing).free / GIB
    detail = f"{free:.1f} GiB free at {existing}"
    if free < MIN_DISK_GIB:
        return problem(subject, detail, f"free some: the demo needs about {MIN_DISK_GIB} GiB")
    return Finding(subject, detail)


def _shared_memory() -> Finding:
    total = shutil.disk_usage(SHARED_MEMORY).total / GIB
    detail = f"{total:.1f} GiB at {SHARED_MEMORY}"
    if total < MIN_SHARED_GIB:
        fix = "an engine needs it: a container's --shm-size 1g, and 8g for several GPUs"
        return Finding("shared memory", detail, fix)
    return Finding("shared memory", detail)
