"""The tables of reports as text, built once for the page and for the terminal.

A report of an earlier version lacks some figures: what it lacks is left out, or shown as "-".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.schemas.formatting import duration, interval, number, percent, reasons

Report = Mapping[str, Any]
Rows = Sequence[Sequence[str]]
SWEEP = "Other strengths of length control"
GROUPS = {"training": "training samples", "validation": "validation", "seed": "seed on validation"}
RATES = ("raw", "length_controlled")


@dataclass(frozen=True)
class Section:
    title: str
    header: Sequence[str]
    rows: Rows
    notes: Sequence[str] = ()


def iteration_sections(report: Report, timings: Mapping[str, float]) -> list[Section]:
    """The tables of an iteration's report; a table without rows is left out."""
    versus = report.get("thinking_vs_direct")
    sections = [
        _validation(report),
        versus_section([versus] if versus else []),
        _categories(report.get("categories") or []),
        _outputs(report),
        _judge_counts(report),
        _pairs(report),
        _sweep(report.get("length_control")),
        _training(report.get("training")),
        Section("Time", ("stage", "time"), [(s, duration(t)) for s, t in timings.items()]),
    ]
    return [section for section in sections if section.rows]


def run_sections(report: Report) -> list[Section]:
    """The tables of a run's report: its iterations, those of its baseline, and both compared."""
    runs = [run for run in (report, report["baseline"]) if run]
    versus = versus_section(report["thinking_vs_direct"])
    return [*map(_iterations, runs), *([versus] if versus.rows else [])]


def subtitle(report: Report) -> list[str]:
    judges = report.get("judges") or {}
    return [f"{kind} judge {judges[kind]}" for kind in ("training", "validation") if kind in judges]


def versus_section(comparisons: Sequence[Report]) -> Section:
    """Thinking minus direct, by iteration."""
    header = (
        *("", "score, thinking - direct", "thinking wins against direct", "length-controlled"),
        *("thinking wins against the direct seed", "length-controlled", "prompts"),
    )
    rows, noted = [], []
    for versus in comparisons:
        rates = [versus.get(key) or {} for key in ("win_rate", "win_rate_against_direct_seed")]
        noted += [versus, *rates]
        rows.append(
            (
                str(versus.get("number", "")),
                interval(versus["difference"], signed=True),
                *(interval(rate.get(kind)) for rate in rates for kind in RATES),
                str(versus["difference"]["n"]),
            )
        )
    return Section("Thinking and direct, on the same prompts", header, rows, _notes(noted))


def _validation(report: Report) -> Section:
    figures = report.get("validation") or {}
    rates = figures.get("win_rate") or {}
    rows: list[tuple[str, str]] = []
    if figures:
        score, seed = figures.get("score_interval"), figures.get("seed_interval")
        rows += [
            ("score", interval(score) if score else number(figures.get("score"))),
            ("score of the seed", interval(seed) if seed else number(figures.get("seed_score"))),
            ("score of the parent", number(figures.get("parent_score"))),
            ("score of an output without a response", number(figures.get("floor"))),
            ("difference to the seed", _difference(figures["vs_seed"])),
            ("difference to the parent", _difference(figures["vs_parent"])),
        ]
    for opponent in ("seed", "parent"):
        if rate := rates.get(opponent):
            rows.append((f"win rate against the {opponent}", interval(rate["raw"])))
            rows.append(("length-controlled", interval(rate["length_controlled"])))
    if gain := rates.get("gain_in_share_over_parent"):
        label = "gain over the parent in the share won from the seed"
        rows.append((label, interval(gain, signed=True)))
    if figures:
        rows.append(("checkpoint chosen", f"epoch {figures['chosen_epoch']}"))
    if "promoted" in report:
        rows.append(("promoted", "yes" if report["promoted"] else "no"))
    notes = _notes([rates, rates.get("seed"), rates.get("parent")])
    return Section("Validation", ("", "mean, 95% interval"), rows, notes)


def _difference(figure: Report) -> str:
    return f"{interval(figure, signed=True)} on {figure['n']} prompts"


def _categories(categories: Sequence[Report]) -> Section:
    rates: list[Report] = [(c.get("win_rate") or {}).get("seed") or {} for c in categories]
    rows = [
        (
            category["category"],
            str(category["prompts"]),
            number(category["score"]),
            number(category["seed_score"]),
            interval(category["vs_seed"], signed=True),
            *(interval(rate.get(kind)) for kind in RATES),
        )
        for category, rate in zip(categories, rates, strict=True)
    ]
    header = (
        *("category", "prompts", "score", "score of the seed", "difference to the seed"),
        *("wins against the seed", "length-controlled"),
    )
    return Section("By category", header, rows, _notes(rates))


def _outputs(report: Report) -> Section:
    """A column for each group of outputs."""
    groups = _groups(report)
    if not groups and "completions" in report:  # of an earlier version
        rows: Rows = [
            ("outputs", str(report["completions"])),
            ("with a response", percent(report["parse_rate"])),
            ("response marker inserted", str(report["forced"])),
            ("truncated", str(report["truncated"])),
        ]
        return Section("Outputs", ("", "training samples"), rows)
    figures = {
        "outputs": lambda o: str(o["completions"]),
        "with a response": lambda o: percent(o["parse_rate"]),
        "response marker inserted": lambda o: str(o["forced"]),
        "truncated": lambda o: str(o["truncated"]),
        "thought tokens": lambda o: _length(o["thought_tokens"]),
        "response tokens": lambda o: _length(o["response_tokens"]),
        "mean spread of a prompt's scores": lambda o: number(o["scores"]["spread"]["mean_std"]),
        "prompts without spread": lambda o: percent(o["scores"]["spread"]["zero_share"]),
        "responses with a score": lambda o: str(o["scores"]["judged"]),
        "responses without a score": lambda o: reasons(o["scores"]["unjudged_reasons"]),
    }
    rows = [(label, *map(figure, groups.values())) for label, figure in figures.items()]
    return Section("Outputs", ("", *groups), rows if groups else [])


def _groups(report: Report) -> dict[str, Report]:
    outputs = report.get("outputs") or {}
    return {name: outputs[key] for key, name in GROUPS.items() if outputs.get(key)}


def _judge_counts(report: Report) -> Section:
    """Whatever a judge counts: calls, verdicts, tokens, dollars."""
    groups = _groups(report)
    counts = [
        {k: v for k, v in (o.get("judge") or {}).items() if isinstance(v, int | float)}
        for o in groups.values()
    ]
    kinds = dict.fromkeys(kind for group in counts for kind in group)
    rows = [
        (kind.replace("_", " "), *(f"{group.get(kind, 0):,}" for group in counts)) for kind in kinds
    ]
    return Section("What the judges counted", ("", *groups), rows)


def _length(figure: Report | None) -> str:
    """`41 (p50 38, p90 70)`."""
    if not figure:
        return "-"
    return f"{figure['mean']:.0f} (p50 {figure['p50']:.0f}, p90 {figure['p90']:.0f})"


def _pairs(report: Report) -> Section:
    rows: Rows = []
    if counts := report.get("pairs"):
        rows = [
            ("prompts sampled", number(report.get("prompts"), 0)),
            ("pairs kept", str(counts["kept"])),
            ("rejected output has no response", str(counts["parse_failure"])),
            ("decided by length alone", str(counts["by_length_alone"])),
            ("prompts without a pair", reasons(counts["dropped"])),
            ("mean response tokens, chosen", number(report["chosen_length"], 1)),
            ("mean response tokens, rejected", number(report["rejected_length"], 1)),
        ]
    return Section("Pairs", ("", ""), rows)


def _sweep(figures: Report | None) -> Section:
    header = ("rho", "pairs", "chosen", "rejected", "decided otherwise than at 0")
    if not figures:
        return Section(SWEEP, header, [])
    rows = [
        (
            f"{row['rho']:g}",
            str(row["pairs"]),
            number(row["chosen_length"], 1),
            number(row["rejected_length"], 1),
            str(row["changed"]),
        )
        for row in figures["sweep"]
    ]
    return Section(SWEEP, header, rows, [f"This iteration used rho = {figures['rho']:g}."])


def _training(figures: Report | None) -> Section:
    rows: Rows = []
    if figures:
        losses = (number(figures[key], 4) for key in ("first_loss", "last_loss"))
        rows = [
            ("pairs trained on", number(figures["pairs"], 0)),
            ("pairs left out", reasons(figures["pairs_dropped"])),
            ("steps", number(figures["steps"], 0)),
            ("loss, first / last step", " / ".join(losses)),
            ("reward margin, last step", number(figures["reward_margin"], 4)),
        ]
    return Section("Training", ("", ""), rows)


def _iterations(run: Report) -> Section:
    header = (
        *("", "status", "score", "difference to the seed", "difference to the parent"),
        *("wins against the seed", "length-controlled", "thought / response tokens"),
        *("with a response", "pairs"),
    )
    seed = run["seed"]
    rates = [(row["win_rate"] or {}).get("seed") or {} for row in run["iterations"]]
    score = interval(seed["score"])
    rows = [("seed", "", score, "", "", "", "", _lengths(seed), percent(seed["parse_rate"]), "")]
    rows += [
        (
            str(row["number"]),
            row["status"],
            interval(row["score"]),
            interval(row["vs_seed"], signed=True),
            interval(row["vs_parent"], signed=True),
            interval(rate.get("raw")),
            interval(rate.get("length_controlled")),
            _lengths(row),
            percent(row["parse_rate"]),
            number(row["pairs"], 0),
        )
        for row, rate in zip(run["iterations"], rates, strict=True)
    ]
    return Section(f"Iterations: {run['name']}", header, rows, _notes(rates))


def _lengths(row: Report) -> str:
    kinds = ("thought_tokens", "response_tokens")
    return " / ".join(number((row[kind] or {}).get("mean"), 0) for kind in kinds)


def _notes(figures: Iterable[Report | None]) -> list[str]:
    """The notes of the figures, each once."""
    return [*dict.fromkeys(f["note"] for f in figures if f and f.get("note"))]
