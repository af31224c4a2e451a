"""`forethought report`: of an iteration or of a run, on the terminal or as a page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from services.cli.api.client import Object
from services.cli.api.connect import connect
from services.cli.errors import CliError
from services.cli.machine.datadir import DEFAULT, DataDir
from services.cli.output import report as tables
from services.cli.output.console import DataOption, out, plain, readable_errors
from shared.schemas.formatting import interval


def report(
    of: Annotated[str, typer.Argument(metavar="RUN_OR_ITERATION", help="Its id.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a page instead.")
    ] = None,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Show the report of an iteration, or of a run beside its direct baseline."""
    with readable_errors():
        client = connect(DataDir(data_dir))
        iteration = client.iteration(of)
        run = None if iteration else client.run_report(of)
        if iteration is None and run is None:
            raise CliError(f"no iteration and no run {of}")
        if html is not None:
            _write(html, client.page(f"/{'iterations' if iteration else 'runs'}/{of}/report.html"))
            out.print(f"{html}", markup=False)
        elif iteration is not None:
            if iteration["report"] is None:
                raise CliError(f"iteration {of} is {iteration['status']}: no report yet")
            out.print(tables.table(iteration))
        elif run is not None:
            for part in run_tables(run):
                out.print(part)
            if run["warning"]:
                out.print(f"[yellow]{plain(run['warning'])}[/]")


def run_tables(run: Object) -> list[Table]:
    """One of each run, then thinking beside direct."""
    shown = [_iterations(one) for one in (run, run["baseline"]) if one]
    if run["thinking_vs_direct"]:
        table = Table("", "score, thinking - direct", "thinking wins", title="Thinking and direct")
        for versus in run["thinking_vs_direct"]:
            rates = versus["win_rate"] or {}
            table.add_row(
                str(versus["number"]),
                interval(versus["difference"], signed=True),
                interval(rates.get("raw")),
            )
        shown.append(table)
    return shown


def _iterations(run: Object) -> Table:
    columns = (
        "",
        "status",
        "score",
        "wins against the seed",
        "length-controlled",
        "parse",
        "pairs",
    )
    table = Table(*columns, title=plain(f"{run['name']} ({run['run_id']})"), title_justify="left")
    table.add_row("seed", "", interval(run["seed"]["score"]))
    for row in run["iterations"]:
        won = (row["win_rate"] or {}).get("seed") or {}
        parsed = row["parse_rate"]
        table.add_row(
            str(row["number"]),
            row["status"],
            interval(row["score"]),
            interval(won.get("raw")),
            interval(won.get("length_controlled")),
            "-" if parsed is None else f"{parsed:.1%}",
            "-" if row["pairs"] is None else str(row["pairs"]),
        )
    return table


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise CliError(f"html: {error}") from None
