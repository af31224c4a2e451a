"""A platform whose processes can be killed at named points: two workers and two loops, on data
servers of its own, with engines that follow a script."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from services.cli.api.client import Client, Object
from services.cli.errors import CliError
from services.cli.machine.datadir import DataDir
from services.cli.machine.postgres import Postgres
from services.cli.machine.valkey import Valkey
from tests.support import scripted_engine, tiny_model
from tests.support.access import bearer
from tests.support.data_servers import DataServer, serving
from tests.support.engine_scripts import some_good_some_bad
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until
from tools.chaos.points import Order, Passage, give, role

ROOT = Path(__file__).parents[2]
ITERATION_SECONDS = 300.0
FINAL = ("succeeded", "failed", "cancelled")
SECOND = {
    "worker": [
        *("celery", "-A", "workers.tasks", "worker", "-Q", "generate,judge,train"),
        *("-P", "threads", "-c", "4", "--without-gossip", "--without-mingle"),
    ],
    "loop": ["services.coordinator.loop"],
}
"""Commands of the second worker and the second loop."""


@dataclass
class ChaosPlatform:
    folder: Path
    client: Client
    postgres: DataServer
    valkey: DataServer
    valkey_url: str
    database_url: str
    """Psycopg's."""
    lease_seconds: float
    engines: list[ScriptedEngine]
    """Engines that outputs are sampled from."""
    seconds: list["Companion"] = field(default_factory=list)

    def start(self) -> str:
        """Id of a new run of the one iteration that all runs repeat. The coordinator may be killed
        meanwhile: the key makes it one run however often it is asked for."""
        key = os.urandom(8).hex()
        run: Object = {}

        def accepted() -> bool:
            with suppress(CliError):
                run.update(self.client.start_run(CONFIG, key=key))
            return bool(run)

        until(accepted, "the run is accepted")
        return str(run["run_id"])

    def ended(self, run_id: str, meanwhile: Callable[[], object] = lambda: None) -> Object:
        """The run's iteration at its end; one that does not come to it is cancelled, and comes
        back as it was."""
        deadline = time.monotonic() + ITERATION_SECONDS
        while (found := self._iteration(run_id)) is None or found["status"] not in FINAL:
            if found is not None and time.monotonic() > deadline:
                self.client.cancel(found["id"])
                return found
            meanwhile()
            for second in self.seconds:
                second.look()
            time.sleep(0.1)
        return found

    def _iteration(self, run_id: str) -> Object | None:
        """None while the coordinator or its database is away."""
        with suppress(CliError):
            return self.client.iterations(run_id)[0]
        return None

    def status(self) -> int:
        """The status with which the coordinator answers."""
        return self._get("/iterations").status_code

    def manifest(self, iteration_id: str) -> Object:
        answer = self._get(f"/iterations/{iteration_id}/manifest")
        answer.raise_for_status()
        manifest: Object = answer.json()
        return manifest

    def _get(self, path: str) -> httpx2.Response:
        headers = bearer(self.client.key)
        return httpx2.get(f"{self.client.url}{path}", headers=headers, timeout=30)

    def sampled(self) -> int:
        """Outputs that the engines were asked for since `forget`."""
        bodies = [body for engine in self.engines for body in engine.requests]
        return sum(body.get("n", 1) for body in bodies if body["max_tokens"] > 1)

    def order(self, order: Order) -> None:
        give(self.folder, order)

    def taken(self) -> list[Path]:
        return list((self.folder / "taken").iterdir())

    def passages(self) -> list[Passage]:
        """Points passed since `forget`."""
        lines = (self.folder / "passed").read_text().splitlines()
        return [Passage(float(at), int(pid), point) for at, pid, point in _fields(lines)]

    def forget(self) -> None:
        """Begin anew: no order is left, nothing was passed."""
        for path in [*(self.folder / "orders").iterdir(), *self.taken()]:
            path.unlink(missing_ok=True)
        (self.folder / "passed").write_text("")
        (self.folder / "messages").unlink(missing_ok=True)
        (self.folder / "skew.json").unlink(missing_ok=True)
        for engine in self.engines:
            engine.requests.clear()


def processes() -> list[tuple[str, psutil.Process]]:
    """The processes of the platform that may be killed, with their roles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (name := role(process.cmdline())) != "other":
                found.append((name, process))
    return found


def _fields(lines: list[str]) -> Iterator[list[str]]:
    return (line.split(" ", 2) for line in lines if line.count(" ") >= 2)


def _prompt(n: int) -> Object:
    return {"text": f"Say something, number {n}.", "checks": [{"kind": "words", "at_most": 3}]}


SAMPLES = 4
SHARD_OUTPUTS = 2 * SAMPLES
CONFIG: Object = {
    "name": "chaos",
    "base_model": "seed",
    "thought_format": "specific",
    "prompts": [_prompt(n) for n in range(12)],
    "validation_prompts": [_prompt(n) for n in range(100, 104)],
    "shard_size": 2,
    "sampling": {"samples": SAMPLES, "max_thought_tokens": 60, "max_response_tokens": 60},
    "training": {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-4, "epochs": 2},
    "promote": "always",
}


class Companion:
    """A process that is started again when it ends."""

    def __init__(self, module: list[str], env: dict[str, str], log: Path) -> None:
        self._command, self._env, self._log = [sys.executable, "-m", *module], env, log
        self._spawn()

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._env,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def look(self) -> None:
        if self.process.poll() is not None:
            self._spawn()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def chaos_platform(
    folder: Path, lease_seconds: float = 4.0, **settings: str
) -> Iterator[ChaosPlatform]:
    """`forethought up` with a second worker and loop beside it, all with points."""
    orders, data = folder / "chaos", DataDir(folder / "data")
    for name in ("orders", "taken"):
        (orders / name).mkdir(parents=True)
    tiny = tiny_model.write(folder / "tiny", max_positions=1024)
    engines = [
        ScriptedEngine(tiny, some_good_some_bad, max_model_len=1024, token_seconds=0.002)
        for _ in range(3)
    ]
    with ExitStack() as stack:
        urls = [stack.enter_context(scripted_engine.running(engine)) for engine in engines]
        # A Unix socket's path is short.
        servers = stack.enter_context(_short_folder())
        postgres, valkey = Postgres(folder / "pg", servers), Valkey(servers)
        env = {name: value for name, value in os.environ.items() if "FORETHOUGHT" not in name}
        env |= {
            "CHAOS_FOLDER": str(orders),
            "PYTHONPATH": f"{Path(__file__).parent / 'hooks'}:{ROOT}",
            "FORETHOUGHT_DATABASE_URL": postgres.url,
            "FORETHOUGHT_REDIS_URL": valkey.url,
            "FORETHOUGHT_MODEL_STORE": str(data.models.absolute()),
            "FORETHOUGHT_WORKER_ENGINE_URL": urls[0],
            "FORETHOUGHT_INFERENCE_ENGINE_URL": urls[1],
            # A shard fills the engine.
            "FORETHOUGHT_MAX_NUM_SEQS": str(SHARD_OUTPUTS // 2),
            "FORETHOUGHT_LEASE_SECONDS": str(lease_seconds),
            "FORETHOUGHT_HEARTBEAT_SECONDS": str(lease_seconds / 5),
            "FORETHOUGHT_RESEND_AFTER_SECONDS": str(lease_seconds / 2),
            **settings,
        }
        database = stack.enter_context(serving(postgres.service(), servers, "-c", "fsync=off"))
        broker = stack.enter_context(serving(valkey.service(), servers))
        url = stack.enter_context(_up(data, env))
        client = stack.enter_context(closing(Client(url, data.read_key())))
        platform = ChaosPlatform(
            folder=orders,
            client=client,
            postgres=database,
            valkey=broker,
            valkey_url=valkey.url,
            database_url=postgres.url.replace("+psycopg", ""),
            lease_seconds=lease_seconds,
            engines=[engines[0], engines[2]],
        )
        platform.forget()
        env = _environment_of("loop") | {"FORETHOUGHT_WORKER_ENGINE_URL": urls[2]}
        for name, command in SECOND.items():
            companion = Companion(command, env, folder / f"second-{name}.log")
            stack.callback(companion.stop)
            platform.seconds.append(companion)
        client.register_model("seed", str(tiny))
        client.wait_for_model("seed")
        yield platform


@contextmanager
def _up(data: DataDir, env: dict[str, str]) -> Iterator[str]:
    """The URL of a platform that `forethought up` runs."""
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(data.root)]
    process = subprocess.Popen([*command, "--quiet"], env=env, cwd=ROOT)
    try:
        until(lambda: data.running_url() or process.poll() is not None, "the platform is up", 120)
        url = data.running_url()
        assert url is not None, "its message is above"
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()


@contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder for sockets, whose paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as folder:
        yield Path(folder)


def _environment_of(name: str) -> dict[str, str]:
    """The environment of a process of the platform, the services' addresses included."""
    return next(process for found, process in processes() if found == name).environ()
