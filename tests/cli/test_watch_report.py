"""What a person sees of a run, on a terminal and in a file."""

import io
from typing import Any

import httpx2
import pytest
from rich.console import Console

from services.cli import report, watch
from services.cli.client import Client

REPORT: dict[str, Any] = {
    "prompts": 48,
    "completions": 192,
    "parse_rate": 0.9375,
    "truncated": 11,
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


def test_the_report_shows_every_result() -> None:
    shown = printed(report.table(iteration(1, "succeeded", report=REPORT)))
    for expected in (
        "93.8%",
        "31 (3 with an unparsed rejected, 4 by length alone)",
        "15 tie, 2 no parsed response",
        "1 too long",
        "41.2 / 44.0",
        "0.6931 / 0.6712",
        "0.400 / 0.420 / 0.450",
        "+0.050 [-0.010, +0.110] on 32 prompts",
        "1 min 01 s",
        "epoch 1",
    ):
        assert expected in shown


def test_the_report_can_do_without_what_was_not_measured() -> None:
    unknown = {**REPORT, "chosen_length": None, "training": dict.fromkeys(REPORT["training"])}
    assert "- / 44.0" in printed(report.table(iteration(1, "succeeded", report=unknown)))


@pytest.mark.parametrize("terminal", [False, True])
def test_watching_shows_progress_until_the_end(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"stage": "pair", "message": "no pair is left: 48 ties", "code": "no_pairs"}
    looks = iter(
        [
            [iteration(1, "running"), iteration(2, "queued")],
            [iteration(1, "succeeded", report=REPORT), iteration(2, "failed", error=error)],
        ]
    )
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json={"data": next(looks)}))
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    ended = watch.watch(Client("http://test", None, transport), "run", console)
    assert [i["status"] for i in ended] == ["succeeded", "failed"]
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    if not terminal:  # a terminal shows only its newest state, when it is redrawn
        assert "3/12 shards · 145 tokens/s · 1 min 15 s left" in shown
    assert "in pair: no pair is left: 48 ties" in shown
