"""The servers that `make bench-chat` compares, each a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from services.cli.api.client import Client
from services.cli.machine.datadir import DataDir
from services.cli.machine.ports import listen, port_of
from services.cli.machine.processes import spawn
from services.cli.machine.stack import Options, Stack, running, url_of
from tests.support.access import bearer
from tests.support.waiting import until

LITELLM = "litellm[proxy]==1.106.2"
ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0


@contextmanager
def scripted_engine(model: Path, script: Mapping[str, Any], token_seconds: float) -> Iterator[str]:
    """Address of a scripted engine that thinks and answers as `chat` there takes it."""
    with listen() as sock:
        command = [sys.executable, "-m", "tests.support.scripted_engine", "--model", str(model)]
        options = ["--fd", str(sock.fileno()), "--chat", json.dumps(script)]
        options += ["--token-seconds", str(token_seconds)]
        log = Path(os.devnull)
        with _process([*command, *options], log, pass_fds=[sock.fileno()]):
            yield url_of(sock)


@contextmanager
def forethought(folder: Path, model: Path, engine_url: str) -> Iterator[Stack]:
    """A whole platform, whose chat serves `bench` from this engine."""
    os.environ["FORETHOUGHT_INFERENCE_ENGINE_URL"] = engine_url
    os.environ["FORETHOUGHT_WORKER_ENGINE_URL"] = engine_url
    os.environ["FORETHOUGHT_MAX_CHAT_IN_FLIGHT"] = "1000"
    with running(Options(DataDir(folder)), lambda _: None, print) as stack:
        _serve(stack, "bench", str(model))
        yield stack


@contextmanager
def real_vllm(folder: Path, name: str) -> Iterator[tuple[Stack, str]]:
    """A platform that serves the bundled model on vLLM, and the address of that vLLM."""
    for variable in ("INFERENCE_ENGINE_URL", "WORKER_ENGINE_URL"):
        os.environ.pop(f"FORETHOUGHT_{variable}", None)
    os.environ["FORETHOUGHT_MAX_MODEL_LEN"] = "1024"
    with running(Options(DataDir(folder)), lambda _: None, print) as stack:
        _serve(stack, name, "bundled")
        database = stack.env["FORETHOUGHT_DATABASE_URL"].replace("+psycopg", "")
        with psycopg.connect(database) as connection:
            row = connection.execute("SELECT engine_url FROM serving").fetchone()
        assert row is not None
        yield stack, str(row[0])


def _serve(stack: Stack, name: str, source: str) -> None:
    """Have chat serve a model that thinks in the generic format."""
    client, headers = Client(stack.url, stack.key), bearer(stack.key)
    body = {"name": name, "source": source, "thought_format": "generic"}
    httpx2.post(f"{stack.url}/models", json=body, headers=headers).raise_for_status()
    client.wait_for_model(name)
    client.promote(name)

    def served() -> bool:
        models = httpx2.get(f"{stack.url}/v1/models", headers=headers)
        return bool(models.json()["data"])

    until(served, "the model is served", START_SECONDS)


def prefix_cache(engine_url: str) -> tuple[float, float]:
    """(hits, queries) of vLLM's prefix cache so far, in tokens."""
    lines = httpx2.get(f"{engine_url}/metrics").text.splitlines()
    hits, queries = (
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
        for name in ("vllm:prefix_cache_hits_total{", "vllm:prefix_cache_queries_total{")
    )
    return hits, queries


@contextmanager
def litellm(venv: Path, folder: Path, engine_url: str) -> Iterator[str]:
    """Address of LiteLLM's proxy in front of the same engine, with one worker as well."""
    python = venv / "bin" / "python"
    if not (venv / "bin" / "litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", LITELLM], check=True)
    upstream = {"model": "openai/m", "api_base": f"{engine_url}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps({"model_list": [{"model_name": "bench", "litellm_params": upstream}]})
    )
    with listen() as sock:
        port = port_of(sock)
    command = [str(python), str(venv / "bin" / "litellm"), "--config", str(config)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    url = f"http://127.0.0.1:{port}"
    # Both are asked without a key.
    env = {**os.environ, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    with _process([*command, *options], folder / "litellm.log", env=env):
        until(lambda: _answers(f"{url}/health/liveliness"), "LiteLLM answers", START_SECONDS)
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).is_success
    except httpx2.TransportError:
        return False


@contextmanager
def _process(
    command: Sequence[str],
    log: Path,
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[None]:
    process = spawn(command, log, pass_fds=pass_fds, env=env)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
