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
    kept = (
        f"{counts['kept']} ({counts['parse_failure']} with an unparsed rejected, "
        f"{counts['by_length_alone']} by length alone)"
    )
    lengths = f"{_number(report['chosen_length'], 1)} / {_number(report['rejected_length'], 1)}"
    return [
        ("pairs kept", kept),
        ("prompts dropped", _reasons(counts["dropped"])),
        ("mean response length, chosen / rejected", lengths),
    ]


def training(report: Object) -> Rows:
    return [
        ("pairs trained on", f"{report['pairs']}"),
        ("pairs left out", _reasons(report["pairs_dropped"])),
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
        *win_rates(scores.get("win_rate") or {}),
        ("checkpoint chosen", f"epoch {scores['chosen_epoch']}"),
        ("promoted", "yes" if report.get("promoted") else "no"),
        *([("note", report["warning"])] if report.get("warning") else []),
    ]


def win_rates(rates: Object) -> Rows:
    rows = []
    for whom in ("seed", "parent"):
        if rate := rates.get(whom):
            rows.append((f"win rate against the {whom}", interval(rate["raw"])))
            rows.append(("length-controlled", interval(rate["length_controlled"])))
    return rows


def timings(seconds: dict[str, float]) -> Rows:
    return [(f"time in {stage}", duration(value)) for stage, value in seconds.items()]


def _difference(difference: dict[str, Any]) -> str:
    low, high = (f"{difference[bound]:+.3f}" for bound in ("low", "high"))
    return f"{difference['mean']:+.3f} [{low}, {high}] on {difference['n']} prompts"


def interval(figure: dict[str, Any] | None, *, signed: bool = False) -> str:
    """`0.521 [0.480, 0.563]`."""
    if not figure:
        return "-"
    sign = "+" if signed else ""
    mean, low, high = (f"{figure[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _reasons(counts: dict[str, int] | None) -> str:
    """`15 tie, 2 same output`."""
    return ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in (counts or {}).items()) or "none"
