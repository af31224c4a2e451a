"""`forethought keys` and `forethought audit`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from services.cli.api.connect import connect
from services.cli.machine.datadir import DEFAULT, DataDir
from services.cli.output.console import DataOption, err, out, readable_errors
from shared.db.tables import Scope

app = typer.Typer(
    no_args_is_help=True, help="Make, list and revoke API keys. Needs a key with the scope `admin`."
)
UNITS = (("requests_per_minute", "a minute"), ("concurrent_requests", "at once"))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its owner or its purpose.")],
    scope: Annotated[
        list[Scope], typer.Option(help="What the key may do. Repeat it for several scopes.")
    ],
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Default: no limit.")
    ] = None,
    concurrent_requests: Annotated[
        int | None, typer.Option(min=1, help="Default: no limit.")
    ] = None,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Make a key. Only the key is printed to the output, and only this once."""
    with readable_errors():
        made = connect(DataDir(data_dir)).create_key(
            name,
            scope,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
        )
        err.print(f"[dim]key {made['id']}; it is not shown again[/]")
        out.print(made["key"], markup=False)


@app.command("list")
def list_(data_dir: DataOption = DEFAULT) -> None:
    """List all keys, newest first. Only the beginning of each key is shown."""
    with readable_errors():
        _print(
            ["id", "begins with", "name", "scopes", "limits", "made (UTC)", "revoked"],
            *(
                [
                    key["id"],
                    key["prefix"],
                    key["name"],
                    " ".join(key["scopes"]),
                    ", ".join(f"{key[limit]} {unit}" for limit, unit in UNITS if key[limit]),
                    _time(key["created_at"]),
                    _time(key["revoked_at"]),
                ]
                for key in connect(DataDir(data_dir)).rows("/keys")
            ),
        )


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the key, from `forethought keys list`.")
    ],
    data_dir: DataOption = DEFAULT,
) -> None:
    """Revoke a key. Every process refuses it within five seconds."""
    with readable_errors():
        revoked = connect(DataDir(data_dir)).revoke_key(key_id)
        out.print(f"revoked {revoked['name']} ({revoked['prefix']}…)", markup=False)


def audit(data_dir: DataOption = DEFAULT) -> None:
    """Show who did what, oldest first."""
    with readable_errors():
        _print(
            ["time (UTC)", "key", "action", "what"],
            *(
                [
                    _time(event["created_at"]),
                    event["key_name"] or event["key_id"] or "the platform",
                    event["action"],
                    event["subject"],
                ]
                for event in connect(DataDir(data_dir)).rows("/audit")
            ),
        )


def _print(*rows: list[str]) -> None:
    """Print rows in columns. Nothing is cut on a narrow terminal, so that ids can be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.print(line.rstrip(), markup=False)


def _time(unix: int | None) -> str:
    return "" if unix is None else datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S")
