"""Reports as tables on a terminal, with the same rows as the pages."""

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table

from services.cli.api.client import Object
from services.cli.output.console import plain
from shared.schemas.report_rows import Section, iteration_sections, run_sections


def table(iteration: Object) -> Group:
    """The results of an iteration that has succeeded."""
    report = iteration["report"]
    sections = iteration_sections(report, iteration["timings"])
    return Group(f"Iteration {iteration['number']}", *_shown(sections, report.get("warning")))


def run_tables(run: Object) -> Group:
    return Group(*_shown(run_sections(run), run["warning"]))


def _shown(sections: Iterable[Section], warning: str | None) -> Iterable[Table | str]:
    for section in sections:
        header = any(section.header)
        table = Table(title=plain(section.title), title_justify="left", show_header=header)
        for column in section.header:
            table.add_column(plain(column))
        for row in section.rows:
            table.add_row(*map(plain, row))
        yield table
        yield from map(plain, section.notes)
    if warning:
        yield f"[yellow]{plain(warning)}[/]"
