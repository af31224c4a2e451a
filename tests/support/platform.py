"""The platform on this machine, as tests use it: over HTTP, and its database for a closer look."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.cli.api.client import Client, Object
from services.cli.machine.datadir import DataDir
from services.cli.machine.stack import Options, Stack, running
from tests.support.waiting import until

ITERATION_SECONDS = 480.0
FLOAT32 = "--dtype float32"
"""Engine arguments under which a seed repeats: in bfloat16, a health check that happens to share
an answer's batch rounds its tokens otherwise."""


@dataclass
class Platform:
    stack: Stack
    client: Client

    def start(self, config: Object) -> str:
        """Id of a new run."""
        return str(self.client.start_run(config, key=os.urandom(8).hex())["run_id"])

    def ended(self, run_id: str) -> list[Object]:
        """The run's iterations, once all have ended."""

        def all_ended() -> bool:
            final = {"succeeded", "failed", "cancelled"}
            return all(i["status"] in final for i in self.client.iterations(run_id))

        until(all_ended, f"run {run_id} ends", ITERATION_SECONDS)
        return self.client.iterations(run_id)

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        url = self.stack.env["FORETHOUGHT_DATABASE_URL"].replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            return connection.execute(query).fetchall()


@contextmanager
def platform(folder: Path, **settings: str) -> Iterator[Platform]:
    """A whole platform with servers of its own; ended processes are started again."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("DATABASE_URL", "REDIS_URL", "MODEL_STORE", "LOG_DIR"):
            patch.delenv(f"FORETHOUGHT_{variable}")
        for name, value in settings.items():
            patch.setenv(f"FORETHOUGHT_{name.upper()}", value)
        with running(Options(DataDir(folder)), lambda _: None, lambda _: None) as stack:
            threading.Thread(target=stack.supervisor.supervise, daemon=True).start()
            with closing(Client(stack.url, stack.key)) as client:
                yield Platform(stack, client)
