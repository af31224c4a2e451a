"""`make bench-reward`: a reward model's chats per second by transformers and by vLLM.

The bundled model with a random head scores the same chats in both, in turns, each in a process of
its own that idles meanwhile. A round is 16 new instructions with 8 responses of mixed length each,
so vLLM's prefix cache has of a round what it has of an iteration. Processor seconds say more than
chats/s where other things run on the machine.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support import reward_models
from workers.models.unpack import unpack

SIDES = ("transformers", "vllm")
PROMPTS = Path(__file__).parents[2] / "configs" / "demo" / "prompts.jsonl"
RESPONSES = 8
WORDS = (10, 150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder or a Hub id instead of the bundled model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--instructions", type=int, default=16, help="of a round")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="forethought-bench-") as folder:
        model = args.model or str(_bundled(Path(folder)))
        sides = {}
        for side in SIDES:
            sides[side] = Side(side, model)
            console.print(f"{side} started in {sides[side].start_seconds:.1f} s")
        _compare(sides, args, console)
        for one in sides.values():
            one.close()


def _compare(sides: dict[str, "Side"], args: argparse.Namespace, console: Any) -> None:
    table = Table("round", "tokens", "side", "chats/s", "tokens/s", "CPU seconds", "differ by")
    for n in range(args.rounds):
        items = _items(n, args.instructions)
        order = SIDES if n % 2 == 0 else SIDES[::-1]
        results = {side: sides[side].ask(items) for side in order}
        pairs = zip(*(results[side]["scores"] for side in SIDES), strict=True)
        difference = max(abs(a - b) for a, b in pairs)
        for side in SIDES:
            seconds, tokens = results[side]["seconds"], results[side]["tokens"]
            rates = [f"{len(items) / seconds:.2f}", f"{tokens / seconds:.0f}"]
            cpu = f"{results[side]['cpu_seconds']:.1f}"
            table.add_row(str(n + 1), str(tokens), side, *rates, cpu, f"{difference:.1e}")
    console.print(table)
    console.print(f"load average {os.getloadavg()[1]:.1f}, {os.cpu_count()} cores")


def _items(round_: int, instructions: int) -> list[dict[str, str]]:
    texts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()]
    words = " ".join(texts).split()
    rng = random.Random(round_)
    items = []
    for instruction in texts[round_ * instructions :][:instructions]:
        for _ in range(RESPONSES):
            length, at = rng.randint(*WORDS), rng.randrange(len(words))
            items.append(
                {"instruction": instruction, "response": " ".join(words[at : at + length])}
            )
    return items


class Side:
    """A runner in a process of its own."""

    def __init__(self, name: str, model: str) -> None:
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.bench.reward_side", name, model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.ask([{"instruction": "Hello?", "response": "Hello."}])
        self.start_seconds = time.perf_counter() - started

    def ask(self, items: list[dict[str, str]]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(items), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


def _bundled(folder: Path) -> Path:
    return reward_models.write(folder / "reward", unpack("bundled", folder))


if __name__ == "__main__":
    main()
