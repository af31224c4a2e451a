"""`forethought demo`: two iterations on the bundled model, then a chat with the result."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console

from services.cli.api import ask
from services.cli.api.client import Client, Object
from services.cli.errors import CliError, StackError
from services.cli.machine.datadir import DataDir
from services.cli.machine.processes import start_companion
from services.cli.output import report
from services.cli.output.watch import watch
from shared.schemas.formatting import duration

FOLDER = Path(__file__).parents[3] / "configs" / "demo"
SEED_MODEL = "smollm2-135m-instruct"
DATASET = "demo"
QUESTION = "Give me three tips for learning to play the piano."
MAX_TOKENS = 256
START_SECONDS = 180.0


def run(data: DataDir, console: Console) -> None:
    """Run the demo, and leave no process behind.

    Raises `CliError` when a step fails. Finished work is kept, and a second run uses it.
    """
    started = time.monotonic()
    with platform(data, console) as url:
        client = Client(url, data.read_key())
        prepare_model(client, console)
        if client.dataset(DATASET) is None:
            client.upload_dataset(DATASET, FOLDER / "prompts.jsonl")
        config = yaml.safe_load((FOLDER / "demo.yaml").read_text())
        console.print(f"[bold]POST {url}/iterations[/] with configs/demo/demo.yaml")
        run_id = client.start_run(config, key=str(uuid.uuid4()))["run_id"]
        iterations = watch(client, run_id, console)
        show(iterations, console)
        model = promoted(client, iterations[-1])
        chat(client, model, console)
    console.print(f"Done in {duration(time.monotonic() - started)}.")


@contextmanager
def platform(data: DataDir, console: Console) -> Iterator[str]:
    """Yield the address of the platform on this data folder; starts one if none is running."""
    if url := data.running_url():
        console.print(f"using the platform at {url}")
        yield url
        return
    console.print(f"starting the platform (logs in {data.logs})")
    command = [sys.executable, "-m", "services.cli", "up", "--quiet"]
    process = start_companion([*command, "--data-dir", str(data.root)])
    try:
        yield _wait_for(process, data)
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], data: DataDir) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StackError("the platform did not start; its message is above")
        if url := data.running_url():
            return url
        time.sleep(0.1)
    raise StackError(f"the platform did not start in {START_SECONDS:.0f} s; see {data.logs}")


def prepare_model(client: Client, console: Console) -> None:
    """Register the bundled model, unless an earlier run did."""
    model = client.model(SEED_MODEL)
    if model is None or model["status"] == "failed":
        console.print(f"registering {SEED_MODEL}, which is bundled with the packages")
        client.register_model(SEED_MODEL, "bundled")
    client.wait_for_model(SEED_MODEL)


def show(iterations: list[Object], console: Console) -> None:
    """Print a table for each iteration. Raises `CliError` when one did not succeed."""
    for iteration in iterations:
        if iteration["status"] == "succeeded":
            console.print(report.table(iteration))
            continue
        error = iteration["error"] or {"stage": iteration["stage"], "message": ""}
        raise CliError(
            f"iteration {iteration['number']} {iteration['status']} in {error['stage']}: "
            f"{error['message']}"
        )


def promoted(client: Client, last: Object) -> str:
    """Promote the last iteration's model, unless the rule has; returns its reference."""
    if not last["report"].get("promoted"):
        client.promote(last["result_model"])
    model = client.model(last["result_model"])
    assert model is not None
    return str(model["ref"])


def chat(platform: Client, model: str, console: Console) -> None:
    client = ask.chat_client(platform.url, platform.key)
    with console.status(f"asking {model}") as status:
        answer = ask.ask(
            client,
            model,
            [{"role": "user", "content": QUESTION}],
            MAX_TOKENS,
            waiting=lambda: status.update(f"loading {model}"),
        )
    console.print(f"\n[bold]You:[/] {QUESTION}")
    console.print(f"[bold]{model}:[/]", end=" ")
    console.print(answer.choices[0].message.content, markup=False, highlight=False)
    details = answer.usage.completion_tokens_details if answer.usage else None
    tokens = details.reasoning_tokens if details else None
    console.print(f"[dim]reasoning_tokens: {tokens} (its thought, which is not shown)[/]\n")
