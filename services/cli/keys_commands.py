"""`forethought keys` and `forethought audit`."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from services.cli.connect import connect
from services.cli.console import DataOption, err, out, plain, readable_errors
from services.cli.datadir import DEFAULT, DataDir
from shared.models import Scope

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys; needs one of admin.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is or what for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; several may be given.")],
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="None: no limit.")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(min=1, help="None: no limit.")] = None,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Make a key. It is printed this once, alone on the output."""
    with readable_errors():
        made = connect(DataDir(data_dir)).create_key(
            name,
            scope,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
        )
        err.print(f"[dim]key {made['id']}; it will not be shown again[/]")
        out.print(made["key"], markup=False)


@app.command("list")
def list_(data_dir: DataOption = DEFAULT) -> None:
    """All keys, the newest first. None of them is shown."""
    with readable_errors():
        table = Table("id", "begins with", "name", "scopes", "limits", "made", "revoked", box=None)
        for key in connect(DataDir(data_dir)).rows("/keys"):
            limits = [
                f"{key[limit]} {unit}"
                for limit, unit in (
                    ("requests_per_minute", "a minute"),
                    ("concurrent_requests", "at once"),
                )
                if key[limit] is not None
            ]
            table.add_row(
                key["id"],
                key["prefix"],
                key["name"],
                " ".join(key["scopes"]),
                ", ".join(limits),
                _time(key["created_at"]),
                _time(key["revoked_at"]),
            )
        out.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    data_dir: DataOption = DEFAULT,
) -> None:
    """Take a key back; within five seconds no process takes it any more."""
    with readable_errors():
        revoked = connect(DataDir(data_dir)).revoke_key(key_id)
        out.print(f"revoked {revoked['name']} ({revoked['prefix']}…)", markup=False)


def audit(data_dir: DataOption = DEFAULT) -> None:
    """Show who did what, the oldest first."""
    with readable_errors():
        table = Table("time (UTC)", "key", "action", "what", box=None)
        for event in connect(DataDir(data_dir)).rows("/audit"):
            who = event["key_name"] or event["key_id"] or "the platform"
            when = _time(event["created_at"])
            table.add_row(when, plain(who), event["action"], plain(event["subject"]))
        out.print(table)


def _time(unix: int | None) -> str:
    return "" if unix is None else datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S")
