"""Where commands print, and how their errors look."""

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
    typer.Option("--data-dir", envvar="FORETHOUGHT_DATA_DIR", help="Where everything is kept."),
]


@contextmanager
def readable_errors() -> Iterator[None]:
    try:
        yield
    except CliError as error:
        err.print(f"[bold red]Error:[/] {plain(str(error))}")
        raise typer.Exit(1) from None


def plain(text: str) -> str:
    """As it is, for a console that reads markup."""
    return text.replace("[", r"\[")
