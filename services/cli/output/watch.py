"""Live progress of a run: one line for each stage on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.cli.api.client import Client, Object, PlatformAway, RequestFailed
from services.cli.errors import CliError
from shared.schemas.formatting import duration

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
POLL_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 15.0
"""Seconds after which the plain form repeats the state of a stage."""
MAX_AWAY_S = 600.0
"""Seconds to wait for a platform that does not answer, for example while it is upgraded."""
BAR_WIDTH = 24
_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def watch(client: Client, run_id: str, console: Console) -> list[Object]:
    """Show a run until all its iterations have ended; returns them.

    Raises `CliError` when the platform stays away for longer than `MAX_AWAY_S`.
    """
    view = _LiveView(console) if console.is_terminal else _PlainView(console)
    iterations: list[Object] = []
    with view:
        while True:
            iterations = _retry_while_away(client, run_id, iterations, view)
            view.show(iterations)
            if all(iteration["status"] in TERMINAL for iteration in iterations):
                return iterations
            time.sleep(POLL_INTERVAL_S)


def _retry_while_away(
    client: Client, run_id: str, before: list[Object], view: "_LiveView | _PlainView"
) -> list[Object]:
    since = time.monotonic()
    while True:
        try:
            return _refreshed(client, run_id, before)
        except (PlatformAway, RequestFailed) as error:
            if isinstance(error, RequestFailed) and error.status < 500:
                raise
            away = time.monotonic() - since
            if away > MAX_AWAY_S:
                raise CliError(
                    f"{error}\nIt has not answered for {duration(away)}. The run is kept and goes "
                    f"on with the platform. To see its result: forethought report {run_id}"
                ) from None
            view.show_away(away)
            time.sleep(POLL_INTERVAL_S)


def _refreshed(client: Client, run_id: str, before: list[Object]) -> list[Object]:
    """The run's iterations as they are now.

    A list holds the reports of all iterations, so it is asked for at the start and when an
    iteration has ended. In between, only the iteration at work is asked for.
    """
    at_work = next((i for i in before if i["status"] not in TERMINAL), None)
    if at_work is not None:
        now = client.iteration(at_work["id"])
        if now is not None and now["status"] not in TERMINAL:
            return [now if i is at_work else i for i in before]
    return client.iterations(run_id)


def describe(progress: Object) -> str:
    """Describe progress as `3/12 shards · 145 tokens/s · 40 s left`; unknown parts are left out."""
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


def _away(seconds: float) -> str:
    return (
        f"the platform has not answered for {duration(seconds)}; the run goes on when it is back "
        f"(waiting up to {duration(MAX_AWAY_S)})"
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
                done, total = progress["done"], progress["total"]
                full = round(BAR_WIDTH * done / total) if total else 0
                bar = Text("━" * full, "cyan") + Text("━" * (BAR_WIDTH - full), "grey37")
                grid.add_row(_label(iteration), iteration["stage"], bar, describe(progress))
        self._live.update(grid)

    def show_away(self, seconds: float) -> None:
        self._live.update(Text(_away(seconds), "yellow"))


class _PlainView:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[str, float]] = {}
        self._away_shown_at = -PLAIN_INTERVAL_S

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
            if state == before and (ended or now - shown_at < PLAIN_INTERVAL_S):
                continue
            self._shown[iteration["id"]] = (state, now)
            detail = _error(iteration) if ended else describe(iteration["progress"])
            self._console.print(f"{_label(iteration)}  {state}  {detail}".rstrip(), markup=False)

    def show_away(self, seconds: float) -> None:
        if (now := time.monotonic()) - self._away_shown_at >= PLAIN_INTERVAL_S:
            self._away_shown_at = now
            self._console.print(_away(seconds), markup=False)


def _label(iteration: Object) -> str:
    return f"iteration {iteration['number']}"


def _error(iteration: Object) -> str:
    error: dict[str, Any] | None = iteration["error"]
    return f"in {error['stage']}: {error['message']}" if error else ""
