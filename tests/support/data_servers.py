"""A Postgres or a Valkey of a test's own, which it may stop, kill and start again."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from services.cli.machine.processes import spawn, tail
from services.cli.machine.supervisor import Service
from shared.db.tables import Base

START_SECONDS = 60.0


class DataServer:
    def __init__(self, service: Service, folder: Path, *options: str) -> None:
        self._service = service
        self._command = [*service.command, *options]
        self._log = folder / f"{service.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it answers."""
        self._process = spawn(
            self._command,
            self._log,
            env=self._service.env,
            death_signal=self._service.stop_signal,
            uid=self._service.uid,
        )
        ready = self._service.ready
        assert ready is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return ready()
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(tail(self._log)) from None
                time.sleep(0.05)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(self._service.stop_signal)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def serving(service: Service, folder: Path, *options: str) -> Iterator[DataServer]:
    """A data server for as long as the block lasts."""
    server = DataServer(service, folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def empty_tables(engine: Engine) -> None:
    tables = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
