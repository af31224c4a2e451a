"""The parts of the platform on one machine, and the environment of its processes."""

import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from services.cli.api.client import Client
from services.cli.machine.datadir import DataDir, run_dir
from services.cli.machine.ports import LOOPBACK, listen, listen_public, port_of, reserve
from services.cli.machine.postgres import Postgres
from services.cli.machine.supervisor import Service, Supervisor
from services.cli.machine.valkey import Valkey
from shared.auth.keys import EVERY_SCOPE

DEFAULT_PORT = 8000
JOB_SERVICES = ("generate", "judge", "train")
GPU_SHARES = {"worker": 0.6, "inference": 0.3}
"""Share of the GPU's memory for each engine; a training uses the worker's, which sleeps then."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    data: DataDir
    port: int | None = None
    """The public API's port; None takes the default one, or any free one if that is taken."""
    host: str = LOOPBACK


@dataclass(frozen=True)
class Stack:
    """A running platform."""

    supervisor: Supervisor
    url: str
    env: Mapping[str, str]
    """The environment of its processes, addresses included."""
    key: str
    """An API key with every scope, as it is kept in the data folder."""


@contextmanager
def running(options: Options, say: Say, warn: Say) -> Iterator[Stack]:
    """The whole platform, ready for requests; stopped when the block is left.

    Raises:
        CliError: the folder is in use or a port is taken.
        StackError: a part did not start.
    """
    with ExitStack() as stack:
        stack.enter_context(options.data.locked())
        public = listen_public(options.port, DEFAULT_PORT, options.host)
        stack.enter_context(closing(public))
        if options.port is None and port_of(public) != DEFAULT_PORT:
            warn(f"port {DEFAULT_PORT} is taken, using port {port_of(public)}")
        sockets = {"coordinator": public}
        for name in JOB_SERVICES:
            sockets[name] = stack.enter_context(closing(listen()))
        engines = [stack.enter_context(closing(reserve())) for _ in range(2)]
        run = stack.enter_context(run_dir(options.data.last_run))
        supervisor = stack.enter_context(Supervisor(options.data.logs, warn))
        env = _environment(options.data, run, sockets, engines)
        _start(supervisor, env, options.data, run, sockets, say)
        url = env["FORETHOUGHT_COORDINATOR_URL"]
        key = _ready_key(options.data, url, env["FORETHOUGHT_SERVICE_KEY"])
        options.data.announce(url)
        yield Stack(supervisor, url, env, key)


def _ready_key(data: DataDir, url: str, service_key: str) -> str:
    """The data folder's; another where this database does not know it, or it was revoked."""
    key = data.read_key()
    if key is not None:
        with closing(Client(url, key)) as client:
            if client.has_live_key():
                return key
    with closing(Client(url, service_key)) as client:
        made = str(client.create_key("local", sorted(EVERY_SCOPE))["key"])
    data.keep_key(made)
    return made


def _start(
    supervisor: Supervisor,
    env: dict[str, str],
    data: DataDir,
    run: Path,
    sockets: Mapping[str, socket.socket],
    say: Say,
) -> None:
    servers = []
    if "FORETHOUGHT_DATABASE_URL" not in env:
        postgres = Postgres(data.postgres, run)
        env["FORETHOUGHT_DATABASE_URL"] = postgres.url
        say("starting Postgres")
        servers.append(postgres.service())
    if "FORETHOUGHT_REDIS_URL" not in env:
        valkey = Valkey(run)
        env["FORETHOUGHT_REDIS_URL"] = valkey.url
        say("starting Valkey")
        servers.append(valkey.service())
    supervisor.start(*servers)
    say("bringing the database to the newest schema")
    supervisor.run_once(Service("migrate", _python("shared.db.migrate"), env=env))
    say("starting the services, the loop, a worker and inference")
    web = [_web(name, sockets[name], env) for name in sockets]
    supervisor.start(*web, *_background(env))


def _environment(
    data: DataDir, run: Path, sockets: Mapping[str, socket.socket], engines: list[socket.socket]
) -> dict[str, str]:
    """Ours over the caller's; what the caller set about data, models and engines stays."""
    root = data.root.absolute()
    urls = {f"FORETHOUGHT_{name.upper()}_URL": url_of(sock) for name, sock in sockets.items()}
    defaults = {
        # Of this start: who asks a service without one of the stack's own is refused.
        "FORETHOUGHT_SERVICE_KEY": secrets.token_urlsafe(32),
        "FORETHOUGHT_MODEL_STORE": str(root / "models"),
        "FORETHOUGHT_DATA_ROOT": str(root / "data"),
        "FORETHOUGHT_LOG_DIR": str(root / "logs"),
        "FORETHOUGHT_WORKER_ENGINE_PORT": str(port_of(engines[0])),
        "FORETHOUGHT_INFERENCE_ENGINE_PORT": str(port_of(engines[1])),
        "PYTHONUNBUFFERED": "1",
        # The sockets of an engine that was killed stay behind.
        "VLLM_RPC_BASE_PATH": str(run),
    }
    for folder in (data.models, data.files):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(os.path.expanduser("~"), os.W_OK):
        # Libraries keep caches in the home; without one they fail late and obscurely.
        defaults["XDG_CACHE_HOME"] = str(root / "cache")
        defaults["HF_HOME"] = str(root / "cache" / "huggingface")
    return {**defaults, **os.environ, **urls}


def url_of(sock: socket.socket) -> str:
    """The address under which processes on this machine reach the socket's server."""
    host = sock.getsockname()[0]
    everywhere = host in ("0.0.0.0", "::")
    shown = LOOPBACK if everywhere else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port_of(sock)}"


def _python(module: str, *args: str) -> list[str]:
    # Scripts in a venv break where its path has a space; -m does not.
    return [sys.executable, "-m", module, *args]


def _web(name: str, sock: socket.socket, env: Mapping[str, str]) -> Service:
    def ready() -> None:
        httpx2.get(f"{url_of(sock)}/readyz", timeout=2.0, trust_env=False).raise_for_status()

    app = f"services.{name}.app:app"
    # Streams that are open must not hold up a stop.
    options = [
        "--fd",
        str(sock.fileno()),
        "--http",
        "shared.web.http_protocol:BoundedProtocol",
        "--no-access-log",
        "--no-proxy-headers",
        "--timeout-graceful-shutdown",
        "2",
    ]
    command = _python("uvicorn", app, *options)
    return Service(name, command, env=env, ready=ready, pass_fds=[sock.fileno()])


def _background(env: Mapping[str, str]) -> list[Service]:
    threads = env.get("FORETHOUGHT_WORKER_THREADS", "4")
    worker = [
        *("-A", "workers.tasks", "worker", "-Q", "generate,judge,train"),
        *("-P", "threads", "-c", threads, "--without-gossip", "--without-mingle"),
    ]
    # These ask no service, and may run a reward model's own code.
    keyless = {name: value for name, value in env.items() if name != "FORETHOUGHT_SERVICE_KEY"}
    port = int(env.get("FORETHOUGHT_METRICS_PORT") or 0)
    inference = {"FORETHOUGHT_METRICS_PORT": str(port + 1)} if port else {}
    # On a stop they end their engines and stages, and give back the shards in work.
    return [
        Service("loop", _python("services.coordinator.loop"), env=env),
        _with_engine("worker", _python("celery", *worker), keyless),
        _with_engine("inference", _python("workers.engine.inference"), keyless | inference),
    ]


def _with_engine(name: str, command: list[str], env: Mapping[str, str]) -> Service:
    """A service with an engine. The caller's engine arguments come last, and so win."""
    args = f"--gpu-memory-utilization {GPU_SHARES[name]} {env.get('FORETHOUGHT_ENGINE_ARGS', '')}"
    own = {"FORETHOUGHT_ENGINE_ARGS": args.strip()}
    return Service(name, command, env={**env, **own}, stop_timeout_s=15.0)
