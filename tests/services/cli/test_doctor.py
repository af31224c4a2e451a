"""What the doctor says of machines that lack something."""

import json
import subprocess
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
def libraries(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Says what torch finds, and how the import of either library ends."""

    def are(cuda: str | None, usable: bool, seen: int, vllm: str = "", torch: str = "") -> None:
        def python(code: str) -> "subprocess.CompletedProcess[str]":
            if code == gpu.ASK_VLLM:
                return subprocess.CompletedProcess([], int(bool(vllm)), "", vllm)
            found = json.dumps([cuda, usable, seen])
            return subprocess.CompletedProcess([], int(bool(torch)), f"{found}\n", torch)

        monkeypatch.setattr(gpu, "_python", python)

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


def test_folders_are_looked_at_where_they_are_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path / "not" / "yet"))
    data = DataDir(tmp_path)
    by_subject = {f.subject: f for f in machine.examine(data)}
    assert str(tmp_path) in by_subject["model store"].detail
    assert "not" not in by_subject["model store"].detail.removeprefix(str(tmp_path))
    monkeypatch.setattr(machine, "MIN_DISK_GIB", 10**9)
    assert all(f.problem for f in machine.examine(data) if f.subject in ("disk", "model store"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert all("read-only" in f.detail for f in machine.examine(data) if f.subject == "disk")


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Finding]]:
    """What is found beside a deployed platform, where a data folder would have no room."""
    monkeypatch.setattr(gpu, "examine", lambda: iter([]))
    monkeypatch.setenv("FORETHOUGHT_DATABASE_URL", "postgresql+psycopg://x@127.0.0.1:1/x")
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path))
    return lambda: {f.subject: f for f in doctor.examine(DataDir(Path("/proc/none")))}


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


def test_a_problem_is_the_commands_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_problem, status in ((False, 0), (True, 1)):
        only = Finding("GPU", "broken [x]", "mend it", problem=is_problem)
        monkeypatch.setattr(doctor, "examine", lambda _, only=only: iter([only]))
        result = CliRunner().invoke(app, ["doctor"])
        assert result.exit_code == status
        assert "broken [x]" in result.output
        assert "mend it" in result.output
