"""The whole platform on this machine, as `forethought up` runs it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from services.cli.machine import stack
from services.cli.machine.datadir import DataDir, run_dir
from services.cli.machine.ports import listen, port_of
from tests.support.access import bearer
from tests.support.waiting import PATIENCE_SECONDS, until
from workers.judge.reward.runners import SLEEPERS_SHARE, gpu_share

pytestmark = pytest.mark.slow
UP = [sys.executable, "-m", "services.cli", "up"]


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "a folder")


@pytest.fixture
def platform(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    for variable in ("FORETHOUGHT_DATABASE_URL", "FORETHOUGHT_REDIS_URL"):
        monkeypatch.delenv(variable)
    process = subprocess.Popen([*UP, "--data-dir", str(data.root)])
    until(lambda: data.running_url() or process.poll() is not None, "the platform is ready")
    assert process.poll() is None, "its message is above"
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def test_it_starts_once_serves_and_stops_without_a_trace(
    platform: psutil.Process, data: DataDir
) -> None:
    url = data.running_url()
    assert url is not None
    assert httpx2.get(f"{url}/readyz").json()["broker"] == "ok"
    (data.files / "mine.jsonl").write_text('{"text": "Name a river."}')
    assert data.key.stat().st_mode & 0o777 == 0o600
    key, body = data.read_key(), {"name": "mine", "path": "mine.jsonl"}
    assert httpx2.post(f"{url}/datasets", json=body).status_code == 401
    made = httpx2.post(f"{url}/datasets", json=body, headers=bearer(key))
    assert made.status_code == 201, made.text
    command = [sys.executable, "-m", "services.cli", "keys", "create", "other", "--scope", "chat"]
    env = {k: v for k, v in os.environ.items() if k != "FORETHOUGHT_SERVICE_KEY"}
    other = subprocess.run(
        [*command, "--data-dir", str(data.root)], capture_output=True, text=True, env=env
    )
    models = httpx2.get(f"{url}/v1/models", headers=bearer(other.stdout.strip()))
    assert models.status_code == 200, other.stderr
    assert (key or "") not in "".join(log.read_text() for log in data.logs.iterdir())

    again = subprocess.run([*UP, "--data-dir", str(data.root)], capture_output=True, text=True)
    assert again.returncode == 1
    assert f"listens on {url}" in again.stderr

    family = platform.children(recursive=True)
    assert len(family) > 9
    platform.send_signal(signal.SIGINT)
    assert platform.wait(timeout=PATIENCE_SECONDS) == 0
    assert psutil.wait_procs(family, timeout=0)[1] == []
    assert data.running_url() is None


def test_killing_it_leaves_no_process(platform: psutil.Process, data: DataDir) -> None:
    family = platform.children(recursive=True)
    assert {"postgres", "valkey-server"} <= {process.name() for process in family}
    sockets = data.last_run.readlink()
    platform.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert not alive, f"{[process.cmdline() for process in alive]} outlived their supervisor"
    with DataDir(data.root).locked(), run_dir(data.last_run) as folder:
        assert not sockets.exists(), "the next start removes what the last one left"
        assert data.last_run.readlink() == folder


def test_data_servers_that_are_killed_start_again(platform: psutil.Process, data: DataDir) -> None:
    url, headers = data.running_url(), bearer(data.read_key())
    (data.files / "mine.jsonl").write_text('{"text": "Name a river."}')
    body = {"name": "mine", "path": "mine.jsonl"}
    httpx2.post(f"{url}/datasets", json=body, headers=headers).raise_for_status()
    servers = [p for p in platform.children() if p.name() in ("postgres", "valkey-server")]
    assert len(servers) == 2
    for server in servers:
        server.kill()
    psutil.wait_procs(servers)
    until(
        lambda: httpx2.get(f"{url}/readyz").json().get("broker") == "ok",
        "both answer again",
    )
    kept = httpx2.get(f"{url}/datasets/mine", headers=headers)
    assert kept.status_code == 200, kept.text


def test_inference_shows_its_figures_on_the_port_after_the_workers() -> None:
    env = {"FORETHOUGHT_METRICS_PORT": "9000"}
    started = {service.name: service.env or {} for service in stack._background(env)}
    assert started["worker"]["FORETHOUGHT_METRICS_PORT"] == "9000"
    assert started["inference"]["FORETHOUGHT_METRICS_PORT"] == "9001"


def test_two_engines_share_a_gpu_unless_told_otherwise() -> None:
    def shares(**env: str) -> list[float]:
        started = {service.name: service.env or {} for service in stack._background(env)}
        return [
            gpu_share(started[name]["FORETHOUGHT_ENGINE_ARGS"]) + SLEEPERS_SHARE
            for name in ("worker", "inference")
        ]

    assert shares() == pytest.approx([0.6, 0.3])
    assert shares(FORETHOUGHT_ENGINE_ARGS="--enforce-eager") == pytest.approx([0.6, 0.3])
    told = "--gpu-memory-utilization 0.45"
    assert shares(FORETHOUGHT_ENGINE_ARGS=told) == pytest.approx([0.45, 0.45])


def test_a_taken_port_that_was_asked_for_is_an_error(data: DataDir) -> None:
    taken = listen()
    try:
        port = port_of(taken)
        done = subprocess.run(
            [*UP, "--data-dir", str(data.root), "--port", str(port)], capture_output=True, text=True
        )
    finally:
        taken.close()
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr
