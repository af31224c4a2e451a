"""The plots of a run's report: lines by iteration, those of its baseline dashed beside them."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from services.coordinator.report.plot import Line, Point, plot
from shared.db.tables import Json
from shared.schemas.formatting import number

RATES = (("raw", "raw"), ("length-controlled", "length_controlled"))


def run_plots(report: Json) -> Markup:
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
            lines(
                ("thought", _mean_of("thought_tokens")),
                ("response", _mean_of("response_tokens")),
                seed=True,
            ),
            labels,
        ),
        plot("Share of validation outputs that parse", lines(("", _parse_rate), seed=True), labels),
    ]
    return Markup("".join(plots))  # each plot escapes its texts


def floor_notes(report: Json) -> list[str]:
    """A note if the scores of outputs without a response differ from one point to the next."""
    runs = [run for run in (report, report["baseline"]) if run]
    rows = [row for run in runs for row in (run["seed"], *run["iterations"])]
    floors = {row["floor"] for row in rows if row["floor"] is not None and row["parse_rate"] != 1}
    if len(floors) < 2:
        return []
    return [
        "An output without a response has the lowest score that a response had got in its run by "
        f"then, here from {number(min(floors))} to {number(max(floors))}. So scores of different "
        "iterations and runs are not quite on one scale; each difference against seed, parent and "
        "direct is."
    ]


def _rows(run: Json, seed: bool) -> list[Json]:
    return [*([{"number": 0} | run["seed"]] if seed else []), *run["iterations"]]


def _points(rows: Sequence[Json], figure: Callable[[Json], Json | None]) -> list[Point]:
    figures = ((row["number"], figure(row)) for row in rows)
    return [Point(n, f["mean"], f.get("low"), f.get("high")) for n, f in figures if f]


def _against_direct_seed(report: Json) -> list[Line]:
    """No line where the judge compares: it has not seen thinking beside the direct seed."""
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
