"""What a person sees of a run, on a terminal and in a file."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from rich.console import Console

from services.cli.api.client import Client, RequestFailed
from services.cli.errors import CliError
from services.cli.output import report, watch

REPORT: dict[str, Any] = {
    "prompts": 48,
    "completions": 192,
    "parse_rate": 0.9375,
    "truncated": 11,
    "forced": 180,
    "pairs": {
        "kept": 31,
        "parse_failure": 3,
        "by_length_alone": 4,
        "dropped": {"tie": 15, "no_parsed_response": 2},
    },
    "chosen_length": 41.25,
    "rejected_length": 44.0,
    "training": {
        "pairs": 30,
        "pairs_dropped": {"too_long": 1},
        "first_loss": 0.6931,
        "last_loss": 0.6712,
        "reward_margin": 0.04,
        "steps": 4,
    },
    "validation": {
        "checkpoints": [{"epoch": 1, "model": "m", "score": 0.45}],
        "chosen_epoch": 1,
        "seed_score": 0.40,
        "parent_score": 0.42,
        "score": 0.45,
        "vs_seed": {"mean": 0.05, "low": -0.01, "high": 0.11, "n": 32},
        "vs_parent": {"mean": 0.03, "low": -0.02, "high": 0.08, "n": 32},
    },
    "promoted": True,
}


def iteration(number: int, status: str, **changes: Any) -> dict[str, Any]:
    progress = {"stage": "generate", "done": 3, "total": 12, "unit": "shards"}
    return {
        "id": str(number),
        "number": number,
        "status": status,
        "stage": "generate",
        "progress": {**progress, "tokens_per_second": 145.2, "eta_seconds": 75.0, "note": None},
        "timings": {"generate": 61.4},
        "report": None,
        "error": None,
        **changes,
    }


def printed(*things: Any, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows_of(shown: str) -> list[str]:
    """The lines of a table with single spaces, without its frame."""
    return [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]


def test_the_report_shows_every_result() -> None:
    shown = rows_of(printed(report.table(iteration(1, "succeeded", report=REPORT))))
    for expected in (
        "outputs 192",
        "with a response 93.8%",
        "response marker inserted 180",
        "truncated 11",
        "prompts sampled 48",
        "pairs kept 31",
        "rejected output has no response 3",
        "decided by length alone 4",
        "prompts without a pair 15 tie, 2 no parsed response",
        "pairs trained on 30",
        "pairs left out 1 too long",
        "mean response tokens, chosen 41.2",
        "mean response tokens, rejected 44.0",
        "loss, first / last step 0.6931 / 0.6712",
        "score 0.450",
        "score of the seed 0.400",
        "score of the parent 0.420",
        "difference to the seed +0.050 [-0.010, +0.110] on 32 prompts",
        "generate 1 min 01 s",
        "checkpoint chosen epoch 1",
        "promoted yes",
    ):
        assert expected in shown, f"{expected!r} is not a row of {shown}"


def test_the_report_can_do_without_what_was_not_measured() -> None:
    unknown = {**REPORT, "chosen_length": None, "training": dict.fromkeys(REPORT["training"])}
    shown = rows_of(printed(report.table(iteration(1, "succeeded", report=unknown))))
    assert "mean response tokens, chosen -" in shown
    assert "loss, first / last step - / -" in shown


def test_notes_are_shown_once_and_beside_no_rate() -> None:
    figure = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    rate = {"raw": figure, "length_controlled": None, "note": "few prompts"}
    validation = {**REPORT["validation"], "win_rate": {"seed": rate, "parent": rate}}
    noted = iteration(1, "succeeded", report={**REPORT, "validation": validation})
    shown = printed(report.table(noted))
    assert shown.count("few prompts") == 1
    rows = rows_of(shown)
    for opponent in ("seed", "parent"):
        i = rows.index(f"win rate against the {opponent} 0.500 [0.250, 0.750]")
        assert rows[i + 1] == "length-controlled -"


@pytest.mark.parametrize("terminal", [False, True])
def test_watching_shows_progress_until_the_end(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"stage": "pair", "message": "no pair is left: 48 ties", "code": "no_pairs"}
    answers = [
        [iteration(1, "running"), iteration(2, "queued")],
        iteration(1, "running"),
        iteration(1, "succeeded"),
        [iteration(1, "succeeded", report=REPORT), iteration(2, "failed", error=error)],
    ]
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0)
    ended, shown = watched(iter(answers), terminal)
    assert [i["status"] for i in ended] == ["succeeded", "failed"]
    if not terminal:  # a terminal shows only its newest state, when it is redrawn
        assert "3/12 shards · 145 tokens/s · 1 min 15 s left" in shown
    assert "in pair: no pair is left: 48 ties" in shown


AWAY = "the platform has not answered"


def watched(answers: Iterator[Any], terminal: bool = False) -> tuple[list[Any], str]:
    """Watch a run whose platform gives these answers, each to the request that it fits: an error, a
    status, the list of iterations, or one iteration."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        match next(answers):
            case Exception() as error:
                raise error
            case int() as status:
                return httpx2.Response(status, json={"error": {"message": "no", "param": None}})
            case list() as rows:
                assert (request.url.path, request.url.params["run_id"]) == ("/iterations", "run")
                return httpx2.Response(200, json={"data": rows})
            case row:
                assert request.url.path == f"/iterations/{row['id']}"
                return httpx2.Response(200, json=row)

    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    client = Client("http://test", None, httpx2.MockTransport(answer))
    ended = watch.watch(client, "run", console)
    assert isinstance(console.file, io.StringIO)
    return ended, console.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_watching_goes_on_when_the_platform_is_back(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.3 if terminal else 0)  # a terminal is redrawn
    answers = [
        [iteration(1, "running")],
        *(httpx2.ConnectError("refused"), httpx2.ReadTimeout("late"), 503, 502),
        iteration(1, "succeeded", report=REPORT),
        [iteration(1, "succeeded", report=REPORT)],
    ]
    ended, shown = watched(iter(answers), terminal)
    assert [i["status"] for i in ended] == ["succeeded"]
    if terminal:
        assert AWAY in shown
    else:
        assert shown.count(AWAY) == 1, "a line every 15 s, not every look"
    assert "waiting up to 10 min" in shown


def test_watching_ends_when_the_platform_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(watch, "MAX_AWAY_S", 0.05)
    refused = itertools.repeat(httpx2.ConnectError("refused"))
    with pytest.raises(CliError, match=r"forethought up(.|\n)*forethought report run"):
        watched(refused)


def test_watching_ends_at_once_where_the_request_is_wrong() -> None:
    with pytest.raises(RequestFailed):
        watched(iter([404]))
