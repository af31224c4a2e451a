"""`python -m experiments.learning.run`: one seed of the experiment, on a platform of its own.

Writes into `--out` `results.json`, every model on the held-out prompts, and each run's report as a
page. A run that was interrupted is taken up again where the data folder has it.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from configs.demo.make_prompts import jsonl
from experiments.learning.make_prompts import PATH as PROMPTS
from experiments.learning.make_prompts import more_prompts
from experiments.learning.measure import Services, measure
from services.cli.api.client import Client
from services.cli.commands.demo import prepare_model
from services.cli.machine.datadir import DataDir
from services.cli.machine.stack import Options, running
from services.cli.output.watch import watch
from shared.web.client import ServiceClient

CONFIG = Path(__file__).with_name("config.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of training")
    parser.add_argument("--data", type=Path, required=True, help="the platform's data folder")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--prompts", type=int, help="of an iteration, where those shipped are few")
    parser.add_argument("--arm", help="one of the two alone")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(CONFIG.read_text())
    config["sampling"]["seed"] = config["training"]["seed"] = given.seed
    runs, arms = config.pop("runs"), config.pop("arms")
    if given.arm:
        arms = {given.arm: arms[given.arm]}
    if given.prompts:
        config |= {"prompts_per_iteration": given.prompts, "dataset": f"learning-{given.prompts}"}
    console = Console()
    with running(Options(DataDir(given.data)), console.print, console.print) as stack:
        client = Client(stack.url, stack.key)
        prepare_model(client, console)
        if client.dataset(config["dataset"]) is None:
            with _prompts(given.prompts, runs) as file:
                client.upload_dataset(config["dataset"], file)
        addresses = ("FORETHOUGHT_GENERATE_URL", "FORETHOUGHT_JUDGE_URL")
        services = Services(*(ServiceClient(stack.env[name], stack.key) for name in addresses))
        results = {}
        for arm, thought_format in arms.items():
            base = config | {"name": f"{arm}-{given.seed}", "thought_format": thought_format}
            models = _train(client, console, base, runs, given.out)
            results[arm] = _measure(services, models, thought_format, config["sampling"])
            (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


@contextmanager
def _prompts(an_iteration: int | None, runs: list[dict[str, Any]]) -> Iterator[Path]:
    if an_iteration is None:
        yield PROMPTS
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PROMPTS.name
        iterations = sum(run["count"] for run in runs)
        file.write_text(jsonl(more_prompts(an_iteration * iterations)), encoding="utf-8")
        yield file


def _train(
    client: Client, console: Console, base: dict[str, Any], runs: list[dict[str, Any]], out: Path
) -> list[str]:
    """The seed and the model of each iteration, of one run after the other."""
    models = [base["base_model"]]
    for number, changes in enumerate(runs, 1):
        name = f"{base['name']}-run-{number}"
        config = base | changes | {"name": name, "base_model": models[-1]}
        config["sampling"] = base["sampling"] | changes["sampling"]
        run = client.start_run(config, key=name)["run_id"]
        models += [iteration["result_model"] for iteration in watch(client, run, console)]
        (out / f"{name}.html").write_text(client.page(f"/runs/{run}/report.html"))
    return models


def _measure(
    services: Services, models: list[str], thought_format: str, sampling: dict[str, Any]
) -> list[dict[str, Any]]:
    """Scored as chat answers, with the marker put in where it is missing; and, beside it, how many
    outputs parse where it is not."""
    forced, natural = (sampling | {"boundary": b} for b in ("forced", "natural"))
    measured = [measure(services, model, thought_format, forced) for model in models]
    thinks = thought_format != "none"
    alone = [measure(services, m, thought_format, natural) for m in models] if thinks else measured
    return [
        one.summary(measured[0]) | {"model": model, "parsed_by_itself": own.parsed}
        for model, one, own in zip(models, measured, alone, strict=True)
    ]


if __name__ == "__main__":
    main()
