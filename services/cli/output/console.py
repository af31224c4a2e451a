"""Consoles that the commands print to, and the form of their errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.errors import CliError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

DataOption = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="FORETHOUGHT_DATA_DIR", help="Folder of the platform's data."
    ),
]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print a `CliError` in one line and exit with status 1."""
    try:
        yield
    except CliError as error:
        err.print(f"[bold red]Error:[/] {plain(str(error))}")
        raise typer.Exit(1) from None


def plain(text: str) -> str:
    """Escape text for a console that reads markup."""
    return text.replace("[", r"\[")
