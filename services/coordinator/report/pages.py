"""Reports as HTML: one file each, no script and nothing to load. Templates escape every text."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from services.coordinator.report.plot import Line, Point, plot
from services.coordinator.report.run_plots import floor_notes, run_plots
from shared.db.tables import Iteration, Json
from shared.schemas.report_rows import SWEEP, Section, iteration_sections, run_sections, subtitle

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PLOTS = "Plots"


def iteration_page(row: Iteration, report: Json) -> str:
    return _page(
        title=f"{row.config['name']}: report of iteration {row.number}",
        subtitle=[f"iteration {row.id}", f"run {row.run_id}", *subtitle(report)],
        warning=report.get("warning"),
        sections=iteration_sections(report, row.timings),
        plots={SWEEP: _sweep_plot((report.get("length_control") or {}).get("sweep", []))},
    )


def run_page(report: Json) -> str:
    lines = [
        f"run {report['run_id']}",
        f"thought format {report['thought_format']}",
        f"seed model {report['seed_model']}",
        *subtitle(report),
    ]
    if report["baseline_of"]:
        lines.append(f"direct baseline of run {report['baseline_of']}")
    return _page(
        title=f"{report['name']}: report of a run",
        subtitle=lines,
        warning=report["warning"],
        sections=[Section(PLOTS, (), [], floor_notes(report)), *run_sections(report)],
        plots={PLOTS: run_plots(report)},
    )


def _page(**context: Any) -> str:
    return TEMPLATES.get_template("report.html").render(context)


def _sweep_plot(sweep: list[Json]) -> Markup:
    lines = [
        Line(side, [Point(r["rho"], r[key]) for r in sweep if r[key] is not None])
        for side, key in (("chosen", "chosen_length"), ("rejected", "rejected_length"))
    ]
    labels = [(row["rho"], f"{row['rho']:g}") for row in sweep]
    return Markup(plot("Mean response tokens by rho", lines, labels))  # it escapes its texts
