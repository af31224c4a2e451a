"""`make bench-generate`: tokens/s through the platform beside vLLM's own `LLM.chat`.

The same prompts, model, sampling and seeds in the same run, in turns: a round of each, then the
next. Both engines are warm, and idle while the other one works. The platform's time is from
POST /generate on the generate service to the job's success, database and queue included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import psycopg
from rich.console import Console
from rich.table import Table

from services.cli.api.client import Client
from services.cli.machine.datadir import DataDir
from services.cli.machine.stack import Options, Stack, running
from shared.settings import get_settings
from shared.thinking.formats import FORMATS
from tests.support.access import bearer
from workers.engine.process import engine_flags, environment
from workers.generate.prompts import ShardPrompt
from workers.generate.stage import seed_of

PROMPTS = Path(__file__).parents[2] / "configs" / "demo" / "prompts.jsonl"
CONTEXT = 2048
SEQUENCES = 256
LOG_CHARACTERS = 4000
POLL_SECONDS = 0.25
"""Asking more often takes from the engine what it would measure: there are two cores."""
SETTINGS = {
    "FORETHOUGHT_MAX_MODEL_LEN": str(CONTEXT),
    "FORETHOUGHT_MAX_NUM_SEQS": str(SEQUENCES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="`bundled`, a folder or a Hub id")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=48, help="prompts in a round")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an output")
    args = parser.parse_args()
    console = Console()
    os.environ.update(SETTINGS)
    # Both engines may have one GPU.
    os.environ.setdefault("FORETHOUGHT_ENGINE_ARGS", "--gpu-memory-utilization 0.4")
    with tempfile.TemporaryDirectory(prefix="forethought-bench-") as folder:
        options = Options(DataDir(Path(folder)))
        with running(options, console.print, console.print) as stack:
            model = _register(stack, args.model)
            platform = Platform(stack, args)
            console.print("starting the platform's engine")
            platform.run(_texts(-1, 2))
            console.print("starting bare vLLM")
            log = options.data.logs / "bare-vllm.log"
            with Bare(_folder_of(stack.env, model), args, log) as bare:
                bare.run(_texts(-1, 2))
                _compare(bare, platform, args, console)


def _compare(bare: "Bare", platform: "Platform", args: argparse.Namespace, console: Any) -> None:
    table = Table("round", "bare tokens/s", "platform tokens/s", "ratio", "same tokens")
    ratios = []
    for n in range(args.rounds):
        texts = _texts(n, args.prompts)
        first, second = (bare, platform) if n % 2 == 0 else (platform, bare)
        results = {first: first.run(texts), second: second.run(texts)}
        rates = {side: r["tokens"] / r["seconds"] for side, r in results.items()}
        ratios.append(rates[platform] / rates[bare])
        same = results[bare]["tokens"] == results[platform]["tokens"]
        row = [f"{rates[bare]:.1f}", f"{rates[platform]:.1f}", f"{ratios[-1]:.3f}"]
        table.add_row(str(n + 1), *row, "yes" if same else "no")
    console.print(table)
    console.print(f"median ratio: {statistics.median(ratios):.3f}")


def _texts(round_: int, count: int) -> list[str]:
    """Other prompts each round, so that no side finds them in its prefix cache."""
    lines = PROMPTS.read_text().splitlines()
    start = round_ * count if round_ >= 0 else len(lines) - count
    return [json.loads(line)["text"] for line in lines[start : start + count]]


def _register(stack: Stack, source: str) -> str:
    client = Client(stack.url, stack.key)
    client.register_model("bench", source)
    return str(client.wait_for_model("bench")["id"])


def _folder_of(env: Any, model: str) -> str:
    with psycopg.connect(env["FORETHOUGHT_DATABASE_URL"].replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT path FROM models WHERE id = %s", [model]).fetchone()
    assert row is not None
    return str(row[0])


class Platform:
    def __init__(self, stack: Stack, args: argparse.Namespace) -> None:
        self._http = httpx2.Client(
            base_url=stack.env["FORETHOUGHT_GENERATE_URL"],
            headers=bearer(stack.key),
            timeout=60,
            trust_env=False,
        )
        self._args = args

    def run(self, texts: list[str]) -> dict[str, float]:
        body = {
            "model": "bench",
            "prompts": [{"text": text} for text in texts],
            "thought_format": "specific",
            "sampling": {
                "samples": self._args.samples,
                "max_thought_tokens": self._args.tokens // 2,
                "max_response_tokens": self._args.tokens // 2,
            },
        }
        started = time.perf_counter()
        job = self._http.post("/generate", json=body).raise_for_status().json()
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            time.sleep(POLL_SECONDS)
            job = self._http.get(f"/jobs/{job['id']}").json()
        seconds = time.perf_counter() - started
        assert job["status"] == "succeeded", job["error"]
        return {"seconds": seconds, "tokens": job["result"]["tokens"]}


class Bare:
    def __init__(self, model: str, args: argparse.Namespace, log: Path) -> None:
        self._args, self._log = args, log
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tools.bench.bare_vllm"),
                *engine_flags(get_settings(), Path(model)),
            ],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log.open("w"), text=True,
        )  # fmt: skip

    def __enter__(self) -> "Bare":
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def run(self, texts: list[str]) -> dict[str, float]:
        assert self._process.stdin is not None
        format_ = FORMATS["specific"]
        request = {
            "messages": [[{"role": "user", "content": format_.prompt(t)}] for t in texts],
            "seeds": [seed_of(0, ShardPrompt(i, None, t, [])) for i, t in enumerate(texts)],
            "n": self._args.samples, "temperature": 0.8, "top_p": 0.95,
            "max_tokens": self._args.tokens // 2 * 2,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"bare vLLM ended:\n{self._log.read_text()[-LOG_CHARACTERS:]}")
        answer: dict[str, float] = json.loads(line)
        return answer


if __name__ == "__main__":
    main()
