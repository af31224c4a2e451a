"""An iteration's report as one HTML file."""

from collections.abc import Mapping

from services.coordinator.report.markup import (
    document,
    judge_lines,
    notes,
    percent,
    section,
    table,
    versus_section,
    warning,
)
from services.coordinator.report.plot import Line, Point, plot
from shared.db.tables import Iteration, Json
from shared.schemas.formatting import interval, number, reasons

WHOSE = {"training": "training samples", "validation": "validation", "seed": "seed on validation"}


def iteration_page(row: Iteration, report: Json) -> str:
    """Of a report of an earlier version it shows what there is."""
    title = f"{row.config['name']}: report of iteration {row.number}"
    versus = report.get("thinking_vs_direct")
    body = [
        warning(report),
        section("Validation", _validation(report.get("validation"))),
        versus_section([versus] if versus else []),
        section("By category", _categories(report)),
        section("Outputs", _outputs(report.get("outputs", {}))),
        section("What the judges counted", _judges(report.get("outputs", {}))),
        section("Pairs", _pairs(report)),
        section("Other strengths of length control", _sweep(report.get("length_control"))),
        section("Training", _training(report.get("training"))),
    ]
    return document(title, [f"iteration {row.id}", f"run {row.run_id}", *judge_lines(report)], body)


def _validation(found: Json | None) -> str:
    if not found:
        return ""
    rates = found.get("win_rate") or {}
    rows = [
        ("score", interval(found.get("score_interval"))),
        ("score of the seed", interval(found.get("seed_interval"))),
        ("score of an output without a response", number(found.get("floor"))),
        ("against the seed", interval(found["vs_seed"], signed=True)),
        ("against the parent", interval(found["vs_parent"], signed=True)),
    ]
    for whom in ("seed", "parent"):
        if rate := rates.get(whom):
            rows.append((f"win rate against the {whom}", interval(rate["raw"])))
            rows.append(("length-controlled", interval(rate["length_controlled"])))
    if gain := rates.get("gain_in_share_over_parent"):
        rows.append(
            ("gain over the parent in share won from the seed", interval(gain, signed=True))
        )
    rows.append(("checkpoint chosen", f"epoch {found['chosen_epoch']}"))
    text = notes([rates, rates.get("seed"), rates.get("parent")])
    return table(("", "mean, 95% interval"), rows) + text


def _categories(report: Json) -> str:
    found = report.get("categories")
    if not found:
        return ""
    rates: list[Json] = [(c.get("win_rate") or {}).get("seed") or {} for c in found]
    rows = [
        (
            c["category"],
            str(c["prompts"]),
            number(c["score"]),
            number(c["seed_score"]),
            interval(c["vs_seed"], signed=True),
            interval(rate.get("raw")),
            interval(rate.get("length_controlled")),
        )
        for c, rate in zip(found, rates, strict=True)
    ]
    header = (
        *("category", "prompts", "score", "seed", "against the seed", "wins against the seed"),
        "length-controlled",
    )
    return table(header, rows) + notes(rates)


def _shown(found: Mapping[str, Json | None]) -> list[tuple[str, Json]]:
    return [(name, outputs) for key, name in WHOSE.items() if (outputs := found.get(key))]


def _judges(found: Mapping[str, Json | None]) -> str:
    """Calls, verdicts by position, agreement of both orders, tokens, dollars: what each counts."""
    counted = {
        name: {k: v for k, v in (o.get("judge") or {}).items() if isinstance(v, int | float)}
        for name, o in _shown(found)
    }
    kinds = dict.fromkeys(kind for counts in counted.values() for kind in counts)
    rows = [
        (kind.replace("_", " "), *(f"{counts.get(kind, 0):,}" for counts in counted.values()))
        for kind in kinds
    ]
    return table(("", *counted), rows) if rows else ""


def _outputs(found: Mapping[str, Json | None]) -> str:
    header = (
        *("", "outputs", "parse", "marker put in", "truncated"),
        *("thought tokens", "response tokens"),
        *("spread of scores", "without spread", "judged", "unjudged"),
    )
    rows = [
        (
            name,
            str(o["completions"]),
            percent(o["parse_rate"]),
            str(o["forced"]),
            str(o["truncated"]),
            _length(o["thought_tokens"]),
            _length(o["response_tokens"]),
            number(o["scores"]["spread"]["mean_std"]),
            percent(o["scores"]["spread"]["zero_share"]),
            str(o["scores"]["judged"]),
            reasons(o["scores"]["unjudged_reasons"]),
        )
        for name, o in _shown(found)
    ]
    return table(header, rows) if rows else ""


def _length(found: Json | None) -> str:
    """`41 (p50 38, p90 70)`."""
    if not found:
        return "-"
    return f"{found['mean']:.0f} (p50 {found['p50']:.0f}, p90 {found['p90']:.0f})"


def _pairs(report: Json) -> str:
    counts = report.get("pairs")
    if not counts:
        return ""
    rows = [
        ("kept", str(counts["kept"])),
        ("with a rejected output that does not parse", str(counts["parse_failure"])),
        ("by length alone", str(counts["by_length_alone"])),
        ("prompts dropped", reasons(counts["dropped"])),
        ("mean response tokens, chosen", number(report["chosen_length"], 1)),
        ("mean response tokens, rejected", number(report["rejected_length"], 1)),
    ]
    return table(("", ""), rows)


def _sweep(found: Json | None) -> str:
    if not found:
        return ""
    rows = [
        (
            f"{row['rho']:g}",
            str(row["pairs"]),
            number(row["chosen_length"], 1),
            number(row["rejected_length"], 1),
            str(row["changed"]),
        )
        for row in found["sweep"]
    ]
    lines = [
        Line(side, [Point(r["rho"], r[key]) for r in found["sweep"] if r[key] is not None])
        for side, key in (("chosen", "chosen_length"), ("rejected", "rejected_length"))
    ]
    labels = [(row["rho"], f"{row['rho']:g}") for row in found["sweep"]]
    drawn = plot("Mean response tokens by rho", lines, labels)
    header = ("rho", "pairs", "chosen", "rejected", "decided otherwise than at 0")
    used = f'<p class="sub">This iteration used rho = {found["rho"]:g}.</p>'
    return used + table(header, rows) + f'<div class="plots">{drawn}</div>'


def _training(found: Json | None) -> str:
    if not found:
        return ""
    losses = f"{number(found['first_loss'])} / {number(found['last_loss'])}"
    rows = [
        ("pairs", str(found["pairs"])),
        ("pairs left out", reasons(found["pairs_dropped"])),
        ("steps", str(found["steps"])),
        ("loss, first / last step", losses),
        ("reward margin, last step", number(found["reward_margin"])),
    ]
    return table(("", ""), rows)
