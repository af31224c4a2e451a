"""`make bench-scale`: an iteration at the paper's size, 5,000 prompts x 8 samples x 1,000 tokens.

The real control plane (Postgres, Valkey, services, loop, worker and its stages), and an engine that
answers at once. TRL trains a model of 20,000 weights; its seconds are its own and stand apart. What
remains is the platform's, with the stand-in's share of the two cores.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from services.cli.api.client import Client, Object
from services.cli.machine.datadir import DataDir
from services.cli.machine.ports import listen
from services.cli.machine.processes import start_companion
from services.cli.machine.stack import Options, running, url_of
from services.cli.output.watch import watch
from shared.schemas.formatting import duration
from tests.support import tiny_model

NAME = re.compile(r"services\.\w+\.app|services\.coordinator\.loop|workers\.[\w.]+|postgres|valkey")
SAMPLE_SECONDS = 0.5
MIB = 2**20
TRAIN_SECONDS = "SELECT result->>'train_seconds' FROM jobs WHERE kind = 'train'"
MAX_WAIT = """
    WITH train AS (SELECT * FROM jobs WHERE kind = 'train')
    SELECT extract(epoch FROM greatest(
        (SELECT min(train.created_at) - max(jobs.finished_at) FROM jobs, train
            WHERE jobs.kind IN ('generate', 'judge') AND jobs.created_at < train.created_at),
        (SELECT min(jobs.created_at) - max(train.finished_at) FROM jobs, train
            WHERE jobs.kind = 'generate' AND jobs.created_at > train.created_at)))
"""


@dataclass
class Measured:
    iteration: Object
    seconds: float
    train_seconds: float
    wait: float
    """Longest time from the end of a stage's last job to the next stage's first."""
    memory: dict[str, int]
    """Most bytes that a process of a name has held, shared pages divided among their holders."""

    @property
    def own_seconds(self) -> float:
        return self.seconds - self.train_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1000)
    args = parser.parse_args()
    console = Console()
    results = []
    for prompts in args.prompts:
        console.print(f"[bold]{prompts} prompts x {args.samples} samples x {args.tokens} tokens")
        results.append(measure(prompts, args.samples, args.tokens, console))
        show(results[-1], console)
    if len(results) > 1:
        small, large = results[0], results[-1]
        times = large.own_seconds / small.own_seconds
        more = large.iteration["report"]["prompts"] / small.iteration["report"]["prompts"]
        console.print(f"{more:.0f} times the prompts took {times:.1f} times the time")


def measure(prompts: int, samples: int, tokens: int, console: Console) -> Measured:
    with tempfile.TemporaryDirectory(prefix="forethought-scale-") as name:
        folder = Path(name)
        tiny = tiny_model.write(folder / "tiny", max_positions=4096, layers=1)
        with _engine(tiny, tokens) as url:
            os.environ["FORETHOUGHT_WORKER_ENGINE_URL"] = url
            os.environ["FORETHOUGHT_INFERENCE_ENGINE_URL"] = url
            options = Options(DataDir(folder / "data"))
            with running(options, lambda _: None, console.print) as stack:
                client = Client(stack.url, stack.key)
                client.register_model("tiny", str(tiny))
                client.wait_for_model("tiny")
                client.upload_dataset("scale", _dataset(folder, prompts))
                memory = Memory()
                started = time.monotonic()
                run_id = client.start_run(_config(prompts, samples, tokens), "scale")["run_id"]
                [iteration] = watch(client, run_id, console)
                seconds = time.monotonic() - started
                peaks = memory.stop()
                if iteration["status"] != "succeeded":
                    raise SystemExit(f"it failed: {iteration['error']}")
                database = stack.env["FORETHOUGHT_DATABASE_URL"].replace("+psycopg", "")
                with psycopg.connect(database) as connection:
                    train = _number(connection, TRAIN_SECONDS)
                    wait = _number(connection, MAX_WAIT)
                return Measured(iteration, seconds, train, wait, peaks)


@contextmanager
def _engine(tiny: Path, tokens: int) -> Iterator[str]:
    with listen() as sock:
        command = [sys.executable, "-m", "tests.support.scripted_engine", "--model", str(tiny)]
        options = ["--fd", str(sock.fileno()), "--tokens", str(tokens)]
        process = start_companion([*command, *options], pass_fds=[sock.fileno()])
        try:
            yield url_of(sock)
        finally:
            process.kill()
            process.wait()


def _dataset(folder: Path, prompts: int) -> Path:
    """Training prompts and a tenth as many, at most 500, to validate with."""
    checks = [{"kind": "words", "at_most": 230}, {"kind": "keyword", "word": "word", "times": 1}]
    file = folder / "scale.jsonl"
    with file.open("w") as lines:
        for n in range(prompts + min(prompts // 10, 500)):
            split = "train" if n < prompts else "validation"
            row = {"text": f"Prompt {n}: go on.", "split": split, "checks": checks}
            lines.write(json.dumps(row) + "\n")
    return file


def _config(prompts: int, samples: int, tokens: int) -> Object:
    budget = tokens // 2 + 100
    return {
        "name": "scaled",
        "base_model": "tiny",
        "dataset": "scale",
        "prompts_per_iteration": prompts,
        "thought_format": "specific",
        "sampling": {
            "samples": samples,
            "max_thought_tokens": budget,
            "max_response_tokens": budget,
        },
        "promote": "never",
        "training": {"batch_size": 256, "micro_batch_size": 8, "learning_rate": 1e-4},
    }


def _number(connection: "psycopg.Connection[tuple[Any, ...]]", query: LiteralString) -> float:
    row = connection.execute(query).fetchone()
    assert row is not None
    return float(row[0])


class Memory:
    """Watches all processes below this one."""

    def __init__(self) -> None:
        self._peaks: dict[str, int] = defaultdict(int)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for process in psutil.Process().children(recursive=True):
                try:
                    name = NAME.search(" ".join(process.cmdline()))
                    held = process.memory_full_info().pss
                except psutil.Error:
                    continue
                if name:
                    self._peaks[name[0]] = max(self._peaks[name[0]], held)

    def stop(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return dict(self._peaks)


def show(measured: Measured, console: Console) -> None:
    report = measured.iteration["report"]
    table = Table(show_header=False)
    table.add_row("prompts / completions", f"{report['prompts']} / {report['completions']}")
    table.add_row("pairs", str(report["pairs"]["kept"]))
    for stage, seconds in measured.iteration["timings"].items():
        table.add_row(f"time in {stage}", duration(seconds))
    table.add_row("of it in TRL", f"{measured.train_seconds:.1f} s")
    table.add_row("the platform's own", f"[bold]{measured.own_seconds:.1f} s")
    table.add_row("longest wait between stages", f"{measured.wait:.2f} s")
    rate = report["completions"] / measured.iteration["timings"]["generate"]
    table.add_row("rows generated and judged", f"{rate:.0f} a second")
    table.add_section()
    for name, held in sorted(measured.memory.items(), key=lambda item: -item[1]):
        table.add_row(f"peak memory of {name}", f"{held / MIB:.0f} MiB")
    console.print(table)


if __name__ == "__main__":
    main()
