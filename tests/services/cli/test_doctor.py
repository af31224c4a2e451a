"""What the doctor says of machines that lack something."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from packaging.requirements import Requirement
from typer.testing import CliRunner

from services.cli import doctor
from services.cli.doctor import gpu, machine, packages, servers
from services.cli.doctor.finding import Finding
from services.cli.machine.datadir import DataDir
from services.cli.main import app

H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 81000, 580.95.05"
Says = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Makes an `nvidia-smi` that prints these lines, and ends so."""

    def says(*lines: str, status: int = 0) -> None:
        file = tmp_path / "nvidia-smi"
        script = ["#!/bin/sh", *(f"echo '{line}'" for line in lines), f"exit {status}"]
        file.write_text("\n".join(script))
        file.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return says


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Makes a torch and a vLLM that the doctor's child processes import: torch reports these
    figures, and each one with a message fails to be imported."""

    def are(cuda: str | None, usable: bool, seen: int, vllm: str = "", torch: str = "") -> None:
        server = tmp_path / "vllm" / "entrypoints" / "openai"
        server.mkdir(parents=True, exist_ok=True)
        for package in (server, server.parent, server.parent.parent):
            (package / "__init__.py").touch()
        (server / "api_server.py").write_text(f"if {vllm!r}: raise ImportError({vllm!r})\n")
        (tmp_path / "torch.py").write_text(
            f"if {torch!r}: raise ImportError({torch!r})\n"
            f"class version: cuda = {cuda!r}\n"
            "class cuda:\n"
            f"    is_available = lambda: {usable}\n"
            f"    device_count = lambda: {seen}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return are


def found(subject: str) -> Finding:
    (only,) = (f for f in gpu.examine() if f.subject == subject)
    return only


def test_a_sound_machine_needs_nothing(smi: Says, libraries: Says) -> None:
    smi(H100, H100)
    libraries("13.0", True, 2)
    assert [(f.subject, f.mark) for f in gpu.examine()] == [
        ("GPU 0", "✓"), ("GPU 1", "✓"), ("torch", "✓"), ("vLLM", "✓"),
    ]  # fmt: skip
    assert "79 of 80 GiB free, driver 580.95.05" in found("GPU 0").detail


@pytest.mark.parametrize(
    ("line", "mark", "fix"),
    [
        ("Tesla P100, 6.0, 16384, 16000, 470.1", "✗", "compute capability 7.5"),
        ("Tesla T4, 7.5, 15360, 15000, 580.1", "!", "--dtype float16"),
        ("A100, 8.0, 81920, 30000, 580.1", "!", "--gpu-memory-utilization 0.3"),
        ("NVIDIA GB10, 12.1, [N/A], [N/A], 580.95.05", "✓", ""),
    ],
)
def test_gpus_that_are_old_or_busy_or_without_memory_of_their_own(
    smi: Says, libraries: Says, line: str, mark: str, fix: str
) -> None:
    smi(line)
    libraries("13.0", True, 1)
    assert found("GPU 0").mark == mark
    assert fix in found("GPU 0").fix


@pytest.mark.parametrize(
    ("torch", "subject", "mark", "fix"),
    [
        ((None, False, 0), "torch", "✗", "CUDA build"),
        (("13.0", False, 0, "", "driver too old"), "torch", "✗", "make setup"),
        (("13.0", False, 0), "torch", "✗", "update the driver to one for CUDA 13.0"),
        (("13.0", True, 1), "torch", "!", "CUDA_VISIBLE_DEVICES"),
        (("13.0", True, 2, "a\nundefined symbol: x"), "vLLM", "✗", "must fit each other"),
    ],
)
def test_libraries_that_do_not_fit_the_gpus(
    smi: Says, libraries: Says, torch: tuple[object, ...], subject: str, mark: str, fix: str
) -> None:
    smi(H100, H100)
    libraries(*torch)
    assert found(subject).mark == mark
    assert fix in found(subject).fix


def test_a_driver_that_does_not_answer(smi: Says, libraries: Says) -> None:
    smi("Failed to initialize NVML: Driver/library version mismatch", status=18)
    libraries("13.0", False, 0)
    assert "version mismatch" in found("GPU").detail
    assert found("GPU").problem


def test_a_driver_that_hangs(
    smi: Says, libraries: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpu, "DRIVER_PATIENCE_S", 0.2)
    libraries("13.0", False, 0)
    assert found("GPU").problem
    assert "restart" in found("GPU").fix


def test_a_container_without_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: Says
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    libraries(None, False, 0)
    assert found("GPU").mark == "✓"
    monkeypatch.setattr(gpu, "DRIVER", tmp_path)
    assert "container toolkit" in found("GPU").fix


def test_the_real_libraries_are_asked() -> None:
    assert gpu._torch(0).mark == "✓"
    assert gpu._python("import no_such_module").returncode == 1


def test_a_package_that_is_too_old_is_named() -> None:
    assert packages._wrong(Requirement("fastapi>=0.136")) == ""
    old = packages._packages([Requirement("fastapi>=99"), Requirement("no-such-package")])
    assert old.problem
    assert "fastapi is 0." in old.fix
    assert "no-such-package is not installed" in old.fix


NO_ROOM = Path("/proc/none")
"""A folder that has no room, and in which root cannot write either."""


def test_folders_are_looked_at_where_they_are_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path / "not" / "yet"))
    by_subject = {f.subject: f for f in machine.examine(DataDir(NO_ROOM))}
    assert by_subject["model store"].detail.endswith(f"GiB free at {tmp_path}")
    assert by_subject["disk"].problem
    assert "at /proc" in by_subject["disk"].detail or "/proc is" in by_subject["disk"].detail


def test_a_folder_that_cannot_be_written_to_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write to any folder of a test, so the system's answer is the test's own.
    monkeypatch.setattr("os.access", lambda *_: False)
    [disk] = (f for f in machine.examine(DataDir(tmp_path)) if f.subject == "disk")
    assert (disk.problem, disk.detail) == (True, f"{tmp_path} is read-only")
    assert f"uid {os.geteuid()}" in disk.fix


@pytest.fixture
def deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: Says, libraries: Says
) -> Callable[[], dict[str, Finding]]:
    """Examines a process of a deployed platform, which has no room for a data folder."""
    smi(H100)
    libraries("13.0", True, 1)
    monkeypatch.setenv("FORETHOUGHT_DATABASE_URL", "postgresql+psycopg://x@127.0.0.1:1/x")
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path))
    return lambda: {f.subject: f for f in doctor.examine(DataDir(NO_ROOM))}


def test_a_deployed_process_is_asked_neither_for_a_data_folder_nor_for_a_port(
    deployed: Callable[[], dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = deployed()
    assert not {"disk", "port", "platform"} & set(found)
    assert "GiB free" in found["model store"].detail
    monkeypatch.delenv("FORETHOUGHT_MODEL_STORE")
    found = deployed()
    assert found["disk"].problem
    assert {"port", "platform"} & set(found)


def test_a_service_that_has_no_model_store_needs_none(
    deployed: Callable[[], dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    found = deployed()["model store"]
    assert (found.mark, found.detail.partition(" at ")[0]) == ("✓", "none")
    monkeypatch.setattr("os.path.ismount", lambda _: True)
    assert "read-only" in deployed()["model store"].detail


def test_a_containers_memory_is_what_its_limit_leaves(
    deployed: Callable[[], dict[str, Finding]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    gib = 1024**3
    (tmp_path / "memory.max").write_text(f"{gib}\n")
    (tmp_path / "memory.current").write_text(f"{gib * 3 // 4}\n")
    (tmp_path / "memory.stat").write_text(f"anon {gib // 2}\ninactive_file {gib // 4}\n")
    found = deployed()["memory"]
    assert (found.mark, found.detail) == ("✓", "0.5 GiB available")
    assert next(machine.examine(DataDir(tmp_path))).problem, "too little for the demo"
    (tmp_path / "memory.max").write_text("max\n")
    assert deployed()["memory"].detail != "0.5 GiB available"


def test_servers_that_are_named_are_asked(postgres_url: str, redis_url: str) -> None:
    assert servers._postgres(postgres_url, "URL").mark == "✓"
    assert servers._valkey(redis_url, "URL").mark == "✓"
    with redis.Redis.from_url(redis_url.replace("redis+socket", "unix")) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert "noeviction" in servers._valkey(redis_url, "URL").fix
        client.config_set("maxmemory-policy", "noeviction")
    for gone in (
        servers._postgres("postgresql+psycopg://x@127.0.0.1:1/x", "URL"),
        servers._valkey("redis://127.0.0.1:1/0", "URL"),
        servers._valkey("not an address", "URL"),
    ):
        assert gone.problem
        assert "does not answer" in gone.detail


def test_a_problem_is_the_commands_exit_status(
    smi: Says,
    libraries: Says,
    postgres_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path))
    libraries("13.0", True, 1)
    smi(H100)
    sound = CliRunner().invoke(app, ["doctor"])
    assert sound.exit_code == 0, sound.output
    assert "✓ GPU 0" in " ".join(sound.output.split())
    smi("broken [x]", status=9)
    broken = CliRunner().invoke(app, ["doctor"])
    assert broken.exit_code == 1, broken.output
    for shown in ("✗", "nvidia-smi fails: broken [x]", "reinstall the driver"):
        assert shown in broken.output
