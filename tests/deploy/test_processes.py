"""The profile of docker-compose.yml that needs no GPU, run here without Docker: each service's
command with its environment, and an iteration through them.

The network's names become ports of this machine, and engines follow a script. What only containers
have is not tried: images, volumes, users, the network itself.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest

from services.cli.api.client import Client, Object
from services.cli.machine.ports import port_of, reserve
from services.cli.machine.postgres import Postgres
from services.cli.machine.valkey import Valkey
from tests.deploy.manifests import ROOT, compose, dockerfile
from tests.support import scripted_engine, tiny_model
from tests.support.access import HEADERS, SERVICE_KEY
from tests.support.data_servers import serving
from tests.support.engine_scripts import some_good_some_bad
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SERVICES = ("generate", "judge", "train", "coordinator")
ENGINES = ("worker-cpu", "inference-cpu")
REST = ("loop", *ENGINES)
LISTENERS = (
    "postgres:5432",
    "valkey:6379",
    *(f"{name}:8000" for name in SERVICES),
    *(f"{name}:9000" for name in ENGINES),
)
STOP_SECONDS = 30.0
SECRETS = {"POSTGRES_PASSWORD": "secret", "FORETHOUGHT_SERVICE_KEY": SERVICE_KEY}
PROMPTS = [
    {"text": f"Say something, number {n}.", "checks": [{"kind": "words", "at_most": 3}]}
    for n in range(12)
]
RUN: Object = {
    "name": "tiny",
    "base_model": "seed",
    "thought_format": "specific",
    "prompts": PROMPTS[:8],
    "validation_prompts": PROMPTS[8:],
    "shard_size": 4,
    "sampling": {"samples": 4, "max_thought_tokens": 60, "max_response_tokens": 60},
    "training": {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-4},
    "promote": "always",
}


class Composition:
    """Its services as processes of this machine, in place of its network, images and volumes."""

    def __init__(self, folder: Path, addresses: Mapping[str, str], settings: Mapping[str, str]):
        """`addresses` are those of this machine by those of the network."""
        self._folder, self._addresses, self._settings = folder, addresses, settings
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = compose()["services"][name]
        words = [*service.get("entrypoint", []), *service["command"]]
        program = [sys.executable] if words[0] == "python3" else [sys.executable, "-m", words[0]]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._started[name] = subprocess.Popen(
                [*program, *words[1:]],
                cwd=ROOT,
                env=self._environment(name, service["environment"]),
                stdout=log,
                stderr=log,
            )
        return self._started[name]

    def _environment(self, name: str, given: Mapping[str, str]) -> dict[str, str]:
        stage = dockerfile().split(" AS api\n")[1].split("\nFROM ")[0]
        of_image = dict(re.findall(r"(UVICORN_\w+)=(\S+)", stage))
        port = self._addresses.get(f"{name}:8000", "").rpartition(":")[2]
        here = {"UVICORN_HOST": "127.0.0.1", "UVICORN_PORT": port, **self._settings}
        if name in ENGINES:
            address = self._addresses[f"{name}:{given['FORETHOUGHT_METRICS_PORT']}"]
            here["FORETHOUGHT_METRICS_PORT"] = address.rpartition(":")[2]
        return {key: self._here(value) for key, value in {**of_image, **given}.items()} | here

    def _here(self, value: str) -> str:
        for name, secret in SECRETS.items():
            value = re.sub(rf"\$\{{{name}:\?.*\}}", secret, value)
        for there, here in self._addresses.items():
            value = re.sub(rf"(?<=[/@]){there}\b", here, value)
        return value

    def healthy(self, name: str) -> bool:
        """By the image's own check."""
        (check,) = re.findall(r"HEALTHCHECK .*CMD \\\n *(\[.*\])", dockerfile())
        here = self._addresses[f"{name}:8000"]
        _, *arguments = json.loads(check.replace("127.0.0.1:8000", here))
        return subprocess.run([sys.executable, *arguments], capture_output=True).returncode == 0

    def stop(self) -> dict[str, int]:
        """Exit status by service. Raises `TimeoutExpired` for one that takes too long."""
        for process in self._started.values():
            process.terminate()
        return {name: process.wait(STOP_SECONDS) for name, process in self._started.items()}

    def kill(self) -> None:
        for process in self._started.values():
            process.kill()
            process.wait()


@contextmanager
def composed(
    folder: Path, tiny: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Client, Mapping[str, str]]]:
    """All of the profile `cpu`, by a client and the addresses of what listens; at the end each must
    leave as `docker compose down` asks it to."""
    with ExitStack() as stack:
        engines = [ScriptedEngine(tiny, some_good_some_bad, max_model_len=3000) for _ in range(2)]
        bulk, chat = (stack.enter_context(scripted_engine.running(engine)) for engine in engines)
        reserved = {name: stack.enter_context(closing(reserve())) for name in LISTENERS}
        addresses = {name: f"127.0.0.1:{port_of(sock)}" for name, sock in reserved.items()}
        postgres, valkey = (str(port_of(reserved[name])) for name in LISTENERS[:2])
        _start_data(stack, folder, postgres, valkey, patch)
        composition = Composition(
            folder,
            addresses | {"engine-cpu:8012": chat.removeprefix("http://")},
            {
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "FORETHOUGHT_MODEL_STORE": str(folder / "models"),
                "FORETHOUGHT_WORKER_ENGINE_URL": bulk,
                "FORETHOUGHT_INFERENCE_ENGINE_URL": chat,
            },
        )
        stack.callback(composition.kill)
        assert composition.start("migrate").wait(60) == 0
        for name in (*SERVICES, *REST):
            composition.start(name)
        for name in SERVICES:
            until(partial(composition.healthy, name), f"{name} is healthy", 90)
        client = Client(f"http://{addresses['coordinator:8000']}", SERVICE_KEY)
        yield stack.enter_context(closing(client)), addresses
        # uvicorn gives itself the signal again once it has left.
        assert set(composition.stop().values()) <= {0, -signal.SIGTERM}


def _start_data(
    stack: ExitStack, folder: Path, postgres: str, valkey: str, patch: pytest.MonkeyPatch
) -> None:
    """On these ports, as in a network, beside their sockets, whose paths are short."""
    run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forethought-", dir="/tmp")))
    patch.setenv("PGPORT", postgres)  # for who asks here whether it is ready
    tcp = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={postgres}"]
    stack.enter_context(serving(Postgres(folder / "pg", run).service(), run, *tcp))
    tcp = ["--port", valkey, "--bind", "127.0.0.1"]
    stack.enter_context(serving(Valkey(run).service(), run, *tcp))


def test_it_runs_an_iteration_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_model.write(tmp_path / "tiny", max_positions=3000)
    with composed(tmp_path, tiny, monkeypatch) as (client, addresses):
        client.register_model("seed", str(tiny))
        client.wait_for_model("seed")
        run = client.start_run(RUN, key="once")["run_id"]
        final = {"succeeded", "failed", "cancelled"}
        until(lambda: client.iterations(run)[0]["status"] in final, "the iteration ends", 240)
        (iteration,) = client.iterations(run)
        assert iteration["status"] == "succeeded", iteration["error"]

        model = client.model(iteration["result_model"])
        assert model is not None
        body = {"model": model["ref"], "messages": [{"role": "user", "content": "Well?"}]}

        def answer() -> httpx2.Response:
            return httpx2.post(f"{client.url}/v1/chat/completions", json=body, headers=HEADERS)

        until(lambda: answer().status_code == 200, "the model is served", 60)
        assert answer().json()["choices"][0]["message"]["content"]

        def figures(name: str) -> dict[str, float]:
            lines = httpx2.get(f"http://{addresses[name]}/metrics").text.splitlines()
            split = (line.rpartition(" ") for line in lines if not line.startswith("#"))
            return {sample: float(value) for sample, _, value in split}

        for name in ENGINES:
            swaps = figures(f"{name}:9000")['forethought_engine_swaps_total{outcome="verified"}']
            assert swaps > 0
        shown = figures("coordinator:8000")
        for kind in ("generate", "train"):
            assert shown[f'forethought_tokens_total{{kind="{kind}"}}'] > 0
        assert shown['forethought_iterations{status="succeeded"}'] == 1
        assert shown['forethought_chat_requests_total{outcome="answered"}'] >= 2
