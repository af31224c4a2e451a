"""`forethought iterate`, `cancel` and `resume`."""

import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from services.cli.api.client import Client
from services.cli.api.connect import connect
from services.cli.errors import CliError
from services.cli.machine.datadir import DEFAULT, DataDir
from services.cli.output import report
from services.cli.output.console import DataOption, err, out, readable_errors
from services.cli.output.watch import watch

Follow = Annotated[bool, typer.Option("--watch", help="Show the progress, then the report.")]
Id = Annotated[str, typer.Argument(metavar="ITERATION", help="Id of the iteration.")]


def iterate(
    file: Annotated[
        Path, typer.Option("-f", "--file", help="YAML file: the body of POST /iterations.")
    ],
    follow: Follow = False,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Start iterations from a config file."""
    with readable_errors():
        client = connect(DataDir(data_dir))
        first = client.start_run(_read_config(file), key=str(uuid.uuid4()))
        out.print(f"run {first['run_id']}, first iteration {first['id']}")
        if first["baseline_run_id"]:
            out.print(f"direct baseline: run {first['baseline_run_id']}")
        if follow:
            _follow(client, first["run_id"])


def cancel(iteration: Id, data_dir: DataOption = DEFAULT) -> None:
    """Stop an iteration and the later ones of its run. Finished work is kept."""
    with readable_errors():
        ended = connect(DataDir(data_dir)).cancel(iteration)
        out.print(f"iteration {ended['number']} of run {ended['run_id']} is {ended['status']}")


def resume(
    iteration: Id,
    training: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file that replaces all settings of the training."),
    ] = None,
    follow: Follow = False,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Continue a failed or cancelled iteration where it ended."""
    with readable_errors():
        client = connect(DataDir(data_dir))
        change = {"training": _read_config(training)} if training else {}
        resumed = client.resume(iteration, **change)
        out.print(f"iteration {resumed['number']} of run {resumed['run_id']} goes on")
        if follow:
            _follow(client, resumed["run_id"])


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CliError(f"{file}: {error}") from None
    if not isinstance(config, dict):
        raise CliError(f"{file}: expected a mapping of settings, such as `name: thinker`")
    return config


def _follow(client: Client, run_id: str) -> None:
    """Show a run until it ends. Exits with status 1 unless all its iterations succeed."""
    iterations = watch(client, run_id, out)
    for iteration in iterations:
        if iteration["status"] == "succeeded":
            out.print(report.table(iteration))
    unfinished = [i["id"] for i in iterations if i["status"] != "succeeded"]
    if unfinished:
        err.print(f"to continue where it ended: forethought resume {unfinished[0]} --watch")
        raise typer.Exit(1)
