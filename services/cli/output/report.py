"""An iteration's report as a table."""

from typing import Any

from rich.table import Table

from services.cli.api.client import Object
from services.cli.output.watch import duration
from shared.schemas.formatting import interval, number, reasons

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
        ("marker put in for it", f"{report['forced']}"),
        ("truncated", f"{report['truncated']}"),
    ]


def pairs(report: Object) -> Rows:
    counts = report["pairs"]
    kept = (
        f"{counts['kept']} ({counts['parse_failure']} with an unparsed rejected, "
        f"{counts['by_length_alone']} by length alone)"
    )
    lengths = f"{number(report['chosen_length'], 1)} / {number(report['rejected_length'], 1)}"
    return [
        ("pairs kept", kept),
        ("prompts dropped", reasons(counts["dropped"])),
        ("mean response length, chosen / rejected", lengths),
    ]


def training(report: Object) -> Rows:
    return [
        ("pairs trained on", f"{report['pairs']}"),
        ("pairs left out", reasons(report["pairs_dropped"])),
        ("training steps", f"{report['steps']}"),
        (
            "loss, first / last step",
            f"{number(report['first_loss'], 4)} / {number(report['last_loss'], 4)}",
        ),
        ("reward margin, last step", number(report["reward_margin"], 4)),
    ]


def validation(report: Object) -> Rows:
    scores = report["validation"]
    return [
        (
            "validation score, seed / parent / this",
            " / ".join(number(scores[k], 3) for k in ("seed_score", "parent_score", "score")),
        ),
        ("against the seed, 95% interval", _difference(scores["vs_seed"])),
        ("against the parent, 95% interval", _difference(scores["vs_parent"])),
        *win_rates(scores.get("win_rate") or {}),
        ("checkpoint chosen", f"epoch {scores['chosen_epoch']}"),
        ("promoted", "yes" if report.get("promoted") else "no"),
        *([("note", report["warning"])] if report.get("warning") else []),
    ]


def win_rates(rates: Object) -> Rows:
    rows, notes = [], [rates.get("note")]
    for whom in ("seed", "parent"):
        if rate := rates.get(whom):
            rows.append((f"win rate against the {whom}", interval(rate["raw"])))
            rows.append(("length-controlled", interval(rate["length_controlled"])))
            notes.append(rate.get("note"))
    return rows + [("note", note) for note in dict.fromkeys(notes) if note]


def timings(seconds: dict[str, float]) -> Rows:
    return [(f"time in {stage}", duration(value)) for stage, value in seconds.items()]


def _difference(difference: dict[str, Any]) -> str:
    return f"{interval(difference, signed=True)} on {difference['n']} prompts"
