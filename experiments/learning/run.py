"""`python -m experiments.learning.run`: one seed of the experiment, on a platform of its own.

Writes into `--out`: `report.json` and `report.html` of the run beside its direct baseline, and
`natural.json`: how many outputs of the seed and of each iteration's model parse when no marker is
put in for them. A run that was interrupted is taken up again where the data folder has it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from services.cli.client import Client
from services.cli.datadir import DataDir
from services.cli.demo import FOLDER as DEMO
from services.cli.demo import prepare
from services.cli.stack import Options, running
from services.cli.watch import watch
from shared.client import ServiceClient

HERE = Path(__file__).parent
PAGE_ROWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of training")
    parser.add_argument("--data", type=Path, required=True, help="the platform's data folder")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    config["sampling"]["seed"] = config["training"]["seed"] = given.seed
    console = Console()
    with running(Options(DataDir(given.data)), console.print, console.print) as stack:
        client = Client(stack.url, stack.key)
        prepare(client, console)
        first = client.start_run(config, key=f"learning-{given.seed}")
        run, direct = first["run_id"], first["baseline_run_id"]
        thinking = watch(client, run, console)
        watch(client, direct, console)
        report = client.run_report(run)
        _write(given.out / "report.json", report)
        (given.out / "report.html").write_text(client.page(f"/runs/{run}/report.html"))
        models = [config["base_model"], *(one["result_model"] for one in thinking)]
        generate = ServiceClient(stack.env["FORETHOUGHT_GENERATE_URL"], stack.key)
        counts = [_natural(generate, config, model) for model in models]
        _write(given.out / "natural.json", counts)


def _natural(generate: ServiceClient, config: dict[str, Any], model: str) -> dict[str, Any]:
    """Of the validation prompts' outputs, greedily and with a natural boundary, what parses."""
    prompts = [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text().splitlines()]
    held_out = [p["text"] for p in prompts if p["split"] == "validation"]
    body = {
        "model": model,
        "prompts": [{"text": text} for text in held_out],
        "thought_format": config["thought_format"],
        "sampling": config["sampling"] | {"boundary": "natural", "samples": 1, "temperature": 0},
    }
    job = generate.post("/generate", body)
    while job["status"] not in ("succeeded", "failed"):
        time.sleep(1)
        job = generate.get(f"/jobs/{job['id']}")
    if job["status"] == "failed":
        raise SystemExit(f"sampling {model} failed: {job['error']}")
    rows = generate.get(f"/jobs/{job['id']}/completions", limit=PAGE_ROWS)["data"]
    return {
        "model": model,
        "outputs": len(rows),
        "parsed": sum(row["response"] is not None for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
