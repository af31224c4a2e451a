"""Live progress of a run: a line a stage on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.cli.api.client import Client, Object, PlatformAway, RequestFailed
from services.cli.errors import CliError

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
POLL_SECONDS = 1.0
PLAIN_SECONDS = 15.0
"""How often the plain form repeats the state of a stage."""
AWAY_SECONDS = 600.0
"""How long a platform may be away, as while it is brought to a newer version."""
BAR_WIDTH = 24
_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def watch(client: Client, run_id: str, console: Console) -> list[Object]:
    """Show a run until all its iterations have ended; returns them.

    Raises `CliError` where the platform is away for longer than `AWAY_SECONDS`.
    """
    view = _LiveView(console) if console.is_terminal else _PlainView(console)
    with view:
        while True:
            iterations = _look(client, run_id, view)
            view.show(iterations)
            if all(iteration["status"] in TERMINAL for iteration in iterations):
                return iterations
            time.sleep(POLL_SECONDS)


def _look(client: Client, run_id: str, view: "_LiveView | _PlainView") -> list[Object]:
    """The run's iterations, once the platform says them."""
    since = time.monotonic()
    while True:
        try:
            return client.iterations(run_id)
        except (PlatformAway, RequestFailed) as error:
            if isinstance(error, RequestFailed) and error.status < 500:
                raise
            away = time.monotonic() - since
            if away > AWAY_SECONDS:
                raise CliError(
                    f"{error}\nIt has been away for {duration(away)}. The run is kept and goes on "
                    f"with the platform; `forethought report {run_id}` shows what came of it."
                ) from None
            view.show_away(away)
            time.sleep(POLL_SECONDS)


def describe(progress: Object) -> str:
    """`3/12 shards · 145 tokens/s · 40 s left`, as far as each is known, or what is waited for."""
    parts = []
    if progress["total"]:
        parts.append(f"{progress['done']}/{progress['total']} {progress['unit']}")
    if (speed := progress["tokens_per_second"]) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if (eta := progress["eta_seconds"]) is not None:
        parts.append(f"{duration(eta)} left")
    if progress["note"]:
        parts.append(progress["note"])
    return " · ".join(parts)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _away(seconds: float) -> str:
    return (
        f"the platform is away, for {duration(seconds)} now; the run goes on when it is back "
        f"(waiting up to {duration(AWAY_SECONDS)})"
    )


class _LiveView:
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, iterations: list[Object]) -> None:
        grid = Table.grid(padding=(0, 2))
        for iteration in iterations:
            for stage, seconds in iteration["timings"].items():
                grid.add_row(_label(iteration), stage, Text("✓", "green"), duration(seconds))
            status = iteration["status"]
            if status in TERMINAL:
                mark = Text(status, _STYLE[status])
                grid.add_row(_label(iteration), mark, "", _error(iteration))
            elif status == "running":
                progress = iteration["progress"]
                bar = _bar(progress["done"], progress["total"])
                grid.add_row(_label(iteration), iteration["stage"], bar, describe(progress))
        self._live.update(grid)

    def show_away(self, seconds: float) -> None:
        self._live.update(Text(_away(seconds), "yellow"))


class _PlainView:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[str, float]] = {}
        self._away_shown_at = -PLAIN_SECONDS

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, iterations: list[Object]) -> None:
        for iteration in iterations:
            status = iteration["status"]
            if status == "queued":
                continue
            now = time.monotonic()
            state = status if status in TERMINAL else iteration["stage"]
            before, shown_at = self._shown.get(iteration["id"], ("", 0.0))
            ended = status in TERMINAL
            if state == before and (ended or now - shown_at < PLAIN_SECONDS):
                continue
            self._shown[iteration["id"]] = (state, now)
            detail = _error(iteration) if ended else describe(iteration["progress"])
            self._console.print(f"{_label(iteration)}  {state}  {detail}".rstrip(), markup=False)

    def show_away(self, seconds: float) -> None:
        if (now := time.monotonic()) - self._away_shown_at >= PLAIN_SECONDS:
            self._away_shown_at = now
            self._console.print(_away(seconds), markup=False)


def _label(iteration: Object) -> str:
    return f"iteration {iteration['number']}"


def _error(iteration: Object) -> str:
    error: dict[str, Any] | None = iteration["error"]
    return f"in {error['stage']}: {error['message']}" if error else ""


def _bar(done: int, total: int) -> Text:
    full = round(BAR_WIDTH * done / total) if total else 0
    return Text("━" * full, "cyan") + Text("━" * (BAR_WIDTH - full), "grey37")
