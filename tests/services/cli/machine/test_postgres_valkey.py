"""The embedded data servers: real binaries, on sockets in a private folder."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from services.cli.errors import StackError
from services.cli.machine import privileges
from services.cli.machine.datadir import run_dir
from services.cli.machine.postgres import Postgres
from services.cli.machine.processes import spawn
from services.cli.machine.supervisor import Service
from services.cli.machine.valkey import Valkey
from tests.support.waiting import until


@pytest.fixture
def sockets() -> Iterator[Path]:
    with run_dir() as folder:
        yield folder


@contextmanager
def started(service: Service, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(
        service.command, log, env=service.env, death_signal=service.stop_signal, uid=service.uid
    )
    try:
        until(lambda: answers(service), f"{service.name} is ready")
        yield process
    finally:
        process.send_signal(service.stop_signal)
        assert process.wait(timeout=20) == 0


def answers(service: Service) -> bool:
    assert service.ready is not None
    try:
        service.ready()
    except (psycopg.Error, redis.RedisError):
        return False
    return True


def connect(postgres: Postgres) -> psycopg.Connection:
    return psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True)


def test_postgres_keeps_its_data_in_a_path_with_a_space(tmp_path: Path, sockets: Path) -> None:
    postgres = Postgres(tmp_path / "my data" / "pg", sockets)
    with started(postgres.service(), tmp_path / "log"), connect(postgres) as connection:
        connection.execute("CREATE TABLE t AS SELECT uuidv7() AS id")
    with started(postgres.service(), tmp_path / "log"), connect(postgres) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_postgres_opens_no_folder_and_no_port(tmp_path: Path, sockets: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    postgres = Postgres(private / "pg", sockets)
    with started(postgres.service(), tmp_path / "log"), connect(postgres) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    for folder in (private, private / "pg", sockets):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_postgres_starts_over_what_a_crash_left(tmp_path: Path, sockets: Path) -> None:
    postgres = Postgres(tmp_path / "pg", sockets)
    (tmp_path / "pg.new").mkdir()
    (tmp_path / "pg.new" / "PG_VERSION").touch()
    with started(postgres.service(), tmp_path / "log"):
        pass
    # The pid of a program that is not Postgres, as after a restart of the machine.
    (tmp_path / "pg" / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n")
    with started(postgres.service(), tmp_path / "log"):
        pass


def test_postgres_ends_a_server_that_outlived_its_supervisor(tmp_path: Path, sockets: Path) -> None:
    postgres = Postgres(tmp_path / "pg", sockets)
    with started(postgres.service(), tmp_path / "log") as first:
        service = postgres.service()
        assert first.wait(timeout=20) == 0
        with started(service, tmp_path / "log"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_postgres_as_root_without_user_namespaces(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "has_user_namespaces", lambda: False)
    with pytest.raises(StackError, match="FORETHOUGHT_DATABASE_URL"):
        Postgres(tmp_path / "pg", sockets).service()  # pytest's folders are for root only
    with run_dir() as reachable:
        reachable.chmod(0o755)
        postgres = Postgres(reachable / "pg", sockets)
        service = postgres.service()
        assert service.uid
        with started(service, tmp_path / "log"), connect(postgres) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="too long"):
        Postgres(tmp_path / "pg", tmp_path / ("x" * 100))


def test_valkey_answers_and_keeps_no_file(tmp_path: Path, sockets: Path) -> None:
    valkey = Valkey(sockets)
    with started(valkey.service(), tmp_path / "log"):
        with redis.Redis(unix_socket_path=valkey.url.removeprefix("redis+socket://")) as client:
            client.set("key", "value")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert [path.name for path in sockets.iterdir()] == ["valkey.sock"]
