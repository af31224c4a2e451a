"""`forethought report`: of an iteration or of a run, on the terminal or as a page."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.api.connect import connect
from services.cli.errors import CliError
from services.cli.machine.datadir import DEFAULT, DataDir
from services.cli.output import report as tables
from services.cli.output.console import DataOption, out, readable_errors


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
            out.print(tables.run_tables(run))


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise CliError(f"html: {error}") from None
