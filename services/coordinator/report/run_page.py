"""A run's report as one HTML file: plots and tables by iteration."""

from collections.abc import Callable, Sequence

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
from shared.db.tables import Json
from shared.schemas.formatting import interval, number

RAW, CONTROLLED, THOUGHT, RESPONSE = "raw", "length_controlled", "thought_tokens", "response_tokens"
RATES = (("raw", RAW), ("length-controlled", CONTROLLED))


def run_page(report: Json) -> str:
    """Of a run's report: plots by iteration, those of its baseline dashed beside them."""
    baseline = report["baseline"]
    runs = [(report, "thinking" if baseline else report["name"], False)]
    if baseline:
        runs.append((baseline, "direct", True))
    whom = "of each against its own seed" if baseline else "against the seed"
    numbers = [row["number"] for run, *_ in runs for row in run["iterations"]]
    labels = [(0.0, "seed"), *((float(n), str(n)) for n in range(1, max(numbers) + 1))]

    def lines(*figures: tuple[str, Callable[[Json], Json | None]], seed: bool) -> list[Line]:
        return [
            Line(f"{whose} {what}".strip(), _points(_rows(run, seed), figure), dashed)
            for run, whose, dashed in runs
            for what, figure in figures
        ]

    plots = [
        plot("Validation score, 95% interval", lines(("", _score), seed=True), labels),
        plot(
            f"Win rate {whom}, 95% interval",
            lines(*((what, _rate(kind)) for what, kind in RATES), seed=False),
            labels,
            guide=0.5,
        ),
        plot(
            "Win rate of both against the direct seed, 95% interval",
            _against_direct_seed(report),
            labels,
            guide=0.5,
        ),
        plot(
            "Mean length on validation prompts, tokens",
            lines(("thought", _mean_of(THOUGHT)), ("response", _mean_of(RESPONSE)), seed=True),
            labels,
        ),
        plot("Share of validation outputs that parse", lines(("", _parse_rate), seed=True), labels),
    ]
    body = [
        warning(report),
        section("Plots", f'<div class="plots">{"".join(plots)}</div>' + notes([_floors(runs)])),
        *(section(f"Iterations: {run['name']}", _iterations(run)) for run, *_ in runs),
        versus_section(report["thinking_vs_direct"]),
    ]
    subtitle = [
        f"run {report['run_id']}",
        f"thought format {report['thought_format']}",
        f"seed model {report['seed_model']}",
        *judge_lines(report),
    ]
    if report["baseline_of"]:
        subtitle.append(f"direct baseline of run {report['baseline_of']}")
    return document(f"{report['name']}: report of a run", subtitle, body)


def _rows(run: Json, seed: bool) -> list[Json]:
    return [*([{"number": 0} | run["seed"]] if seed else []), *run["iterations"]]


def _points(rows: Sequence[Json], figure: Callable[[Json], Json | None]) -> list[Point]:
    found = ((row["number"], figure(row)) for row in rows)
    return [Point(n, f["mean"], f.get("low"), f.get("high")) for n, f in found if f]


def _against_direct_seed(report: Json) -> list[Line]:
    """None where the judge compares: it has not seen thinking beside the direct run's seed."""
    thinking = [
        {"number": versus["number"], "win_rate": {"seed": rate}}
        for versus in report["thinking_vs_direct"]
        if (rate := versus.get("win_rate_against_direct_seed"))
    ]
    if not thinking:
        return []
    runs = ("thinking", thinking, False), ("direct", report["baseline"]["iterations"], True)
    return [
        Line(f"{whose} {what}", _points(rows, _rate(kind)), dashed)
        for whose, rows, dashed in runs
        for what, kind in RATES
    ]


def _floors(runs: Sequence[tuple[Json, str, bool]]) -> Json | None:
    """A note where scores of outputs without a response differ from one point to the next."""
    rows = [row for run, *_ in runs for row in (run["seed"], *run["iterations"])]
    found = {row["floor"] for row in rows if row["floor"] is not None and row["parse_rate"] != 1}
    if len(found) < 2:
        return None
    low, high = number(min(found)), number(max(found))
    return {
        "note": "An output without a response has the lowest score that a response had got in its "
        f"run by then, here from {low} to {high}. So scores of different iterations and runs are "
        "not quite on one scale; differences against seed, parent and direct each are."
    }


def _score(row: Json) -> Json | None:
    score: Json | None = row["score"]
    return score


def _against_seed(row: Json) -> Json | None:
    return (row["win_rate"] or {}).get("seed")


def _rate(kind: str) -> Callable[[Json], Json | None]:
    return lambda row: (_against_seed(row) or {}).get(kind)


def _mean_of(what: str) -> Callable[[Json], Json | None]:
    return lambda row: row[what]


def _parse_rate(row: Json) -> Json | None:
    return None if row["parse_rate"] is None else {"mean": row["parse_rate"]}


def _iterations(run: Json) -> str:
    header = (
        *("", "status", "score", "against the seed", "against the parent", "wins against the seed"),
        *("length-controlled", "thought / response tokens", "parse", "pairs"),
    )
    seed = run["seed"]
    rows = [("seed", "", interval(seed["score"]), "", "", "", "", _lengths(seed), _parse(seed), "")]
    rows += [
        (
            str(row["number"]),
            row["status"],
            interval(row["score"]),
            interval(row["vs_seed"], signed=True),
            interval(row["vs_parent"], signed=True),
            interval(_rate(RAW)(row)),
            interval(_rate(CONTROLLED)(row)),
            _lengths(row),
            _parse(row),
            "-" if row["pairs"] is None else str(row["pairs"]),
        )
        for row in run["iterations"]
    ]
    return table(header, rows) + notes(_against_seed(row) for row in run["iterations"])


def _lengths(row: Json) -> str:
    return " / ".join(number((row[what] or {}).get("mean"), 0) for what in (THOUGHT, RESPONSE))


def _parse(row: Json) -> str:
    return percent(row["parse_rate"])
