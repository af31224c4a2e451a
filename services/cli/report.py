"""An iteration's report as a table."""

from typing import Any

from rich.table import Table

from services.cli.client import Object
from services.cli.watch import duration

Rows = list[tuple[str, str]]


def table(iteration: Object) -> Table:
    """The results of an iteration that has succeeded."""
    report = iteration["report"]
    title = f"Iteration {iteration['number']}"
    result = Table("", "", title=title, title_justify="left", show_header=False, highlight=True)
    sections = (
        sampled(report),
        pairs(report),
        training(report["training"]),
        validation(report),
        timings(iteration["timings"]),
    )
    for rows in sections:
        for row in rows:
            result.add_row(*row)
        result.add_section()
    return result


def sampled(report: Object) -> Rows:
    return [
        ("prompts", f"{report['prompts']}"),
        ("completions", f"{report['completions']}"),
        ("parse rate", f"{report['parse_rate']:.1%}"),
        ("truncated", f"{report['truncated']}"),
    ]


def pairs(report: Object) -> Rows:
    counts = report["pairs"]
    dropped = ", ".join(f"{count} {_words(why)}" for why, count in counts["dropped"].items())
    lengths = f"{_number(report['chosen_length'], 1)} / {_number(report['rejected_length'], 1)}"
    return [
        ("pairs kept", f"{counts['kept']} ({counts['parse_failure']} with an unparsed rejected)"),
        ("prompts dropped", dropped or "none"),
        ("mean response length, chosen / rejected", lengths),
    ]


def training(report: Object) -> Rows:
    return [
        ("training steps", f"{report['steps']}"),
        (
            "loss, first / last",
            f"{_number(report['first_loss'], 4)} / {_number(report['last_loss'], 4)}",
        ),
        ("reward margin", _number(report["reward_margin"], 4)),
    ]


def validation(report: Object) -> Rows:
    scores = report["validation"]
    return [
        (
            "validation score, seed / parent / this",
            " / ".join(_number(scores[k], 3) for k in ("seed_score", "parent_score", "score")),
        ),
        ("against the seed, 95% interval", _difference(scores["vs_seed"])),
        ("against the parent, 95% interval", _difference(scores["vs_parent"])),
        ("checkpoint chosen", f"epoch {scores['chosen_epoch']}"),
        ("promoted", "yes" if report.get("promoted") else "no"),
    ]


def timings(seconds: dict[str, float]) -> Rows:
    return [(f"time in {stage}", duration(value)) for stage, value in seconds.items()]


def _difference(difference: dict[str, Any]) -> str:
    low, high = (f"{difference[bound]:+.3f}" for bound in ("low", "high"))
    return f"{difference['mean']:+.3f} [{low}, {high}] on {difference['n']} prompts"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _words(reason: str) -> str:
    return reason.replace("_", " ")
