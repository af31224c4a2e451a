"""The `forethought` command."""

import importlib.metadata
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.table import Table

from services.cli import doctor
from services.cli.api.connect import connect
from services.cli.commands import export as export_commands
from services.cli.commands import iterate as iterate_commands
from services.cli.commands import keys as keys_commands
from services.cli.commands import report as report_command
from services.cli.machine import stack
from services.cli.machine.datadir import DEFAULT, DataDir
from services.cli.machine.ports import LOOPBACK
from services.cli.machine.supervisor import Stopped, stoppable
from services.cli.output.console import DataOption, err, out, plain, readable_errors

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Teach a language model to think before it answers, and serve it with its thoughts "
    "hidden.",
)


def _show_version(requested: bool) -> None:
    if requested:
        out.print(importlib.metadata.version("forethought"))
        raise typer.Exit


@app.callback()
def forethought(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def up(
    data_dir: DataOption = DEFAULT,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port of the API. Default: 8000, or a free one when 8000 is taken.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address that the API listens on.")] = LOOPBACK,
    quiet: Annotated[bool, typer.Option(help="Print only warnings and errors.")] = False,
) -> None:
    """Run the whole platform on this machine until Ctrl-C."""
    started = time.monotonic()
    options = stack.Options(DataDir(data_dir), port, host)

    def say(line: str) -> None:
        if not quiet:
            out.print(f"[dim]{plain(line)}[/]")

    def warn(line: str) -> None:
        err.print(f"[yellow]{plain(line)}[/]")

    with readable_errors(), stoppable():
        try:
            with stack.running(options, say, warn) as platform:
                if not quiet:
                    _greet(platform, options, time.monotonic() - started)
                platform.supervisor.supervise()
        except Stopped:
            if not quiet:
                out.print("stopped")


def _greet(platform: stack.Stack, options: stack.Options, seconds: float) -> None:
    urls = {name: platform.env[f"FORETHOUGHT_{name.upper()}_URL"] for name in stack.JOB_SERVICES}
    # On another address than loopback this output may be a log that others read.
    key = platform.key if options.host == LOOPBACK else f"in {options.data.key}"
    out.print(
        f"[bold green]Forethought runs[/] at [bold]{platform.url}[/] (ready in {seconds:.1f} s)\n"
        f"  API description  {platform.url}/docs\n"
        f"  chat             {platform.url}/v1 (OpenAI's API)\n"
        f"  job services     {', '.join(f'{name} {url}' for name, url in urls.items())}\n"
        f"  API key          {key}\n"
        f"  data and logs    {options.data.root}\n"
        "In another terminal: forethought iterate -f config.yaml --watch\n"
        "To stop everything: Ctrl-C"
    )


@app.command("demo")
def demo_(data_dir: DataOption = DEFAULT) -> None:
    """Run two iterations on the bundled model and chat with the result."""
    from services.cli.commands import demo  # noqa: PLC0415 (openai is a third of the start time)

    with readable_errors(), stoppable():
        try:
            demo.run(DataDir(data_dir), out)
        except Stopped as stop:
            err.print("interrupted")
            raise typer.Exit(130 if str(stop) == "SIGINT" else 143) from None


app.command("iterate")(iterate_commands.iterate)
app.command("cancel")(iterate_commands.cancel)
app.command("resume")(iterate_commands.resume)
app.command("report")(report_command.report)
app.add_typer(export_commands.app, name="export")
app.add_typer(keys_commands.app, name="keys")
app.command("audit")(keys_commands.audit)


@app.command()
def chat(
    message: Annotated[
        str | None, typer.Argument(help="One question. Without it, a conversation starts.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Default: the served model.")
    ] = None,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Chat with the served model. Its thoughts stay hidden."""
    from services.cli.api import ask  # noqa: PLC0415 (openai, as above)

    with readable_errors():
        platform = connect(DataDir(data_dir))
        client = ask.chat_client(platform.url, platform.key)
        name = model or ask.default_model(client)
        if message is not None:
            _print(ask.stream(client, name, [{"role": "user", "content": message}]))
            return
        messages: ask.Messages = []
        for question in _questions():
            messages.append({"role": "user", "content": question})
            answer = _print(ask.stream(client, name, messages))
            messages.append({"role": "assistant", "content": answer})


def _print(stream: Iterator[str]) -> str:
    """Print the pieces as they arrive; returns the whole text."""
    pieces = []
    for piece in stream:
        out.print(piece, end="", markup=False)
        pieces.append(piece)
    out.print()
    return "".join(pieces)


def _questions() -> Iterator[str]:
    if sys.stdin.isatty():
        err.print("[dim]To end the conversation: Ctrl-D[/]")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


@app.command()
def prune(
    older_than: Annotated[
        float,
        typer.Option(min=0, metavar="DAYS", help="Days since the last iteration of a run ended."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be deleted.")
    ] = False,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Delete old completions and checkpoints. What led to a named or promoted model is kept."""
    with readable_errors():
        client = connect(DataDir(data_dir))
        counts = client.prune(older_than, dry_run)
        out.print(
            f"{'would delete' if dry_run else 'deleting'}: "
            f"{counts['completions']} completions and {counts['checkpoints']} checkpoints "
            f"({counts['bytes'] / 2**20:.1f} MiB) of {counts['iterations']} iterations"
        )


@app.command("doctor")
def doctor_(data_dir: DataOption = DEFAULT) -> None:
    """Check this machine and say what to fix."""
    findings = list(doctor.examine(DataDir(data_dir)))
    table = Table("", "", "", box=None, show_header=False)
    for finding in findings:
        color = "red" if finding.problem else "yellow" if finding.fix else "green"
        fix = f"\n[{color}]{plain(finding.fix)}[/]" if finding.fix else ""
        table.add_row(f"[{color}]{finding.mark}[/]", finding.subject, plain(finding.detail) + fix)
    out.print(table)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)
