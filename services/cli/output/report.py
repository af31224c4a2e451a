"""Reports as tables on a terminal, with the same rows as the pages."""

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table

from services.cli.api.client import Object
from services.cli.output.console import plain
from shared.schemas.report_rows import Section, iteration_sections, run_sections

MAX_COLUMNS = 5


def table(iteration: Object) -> Group:
    """The results of an iteration that has succeeded."""
    report = iteration["report"]
    sections = iteration_sections(report, iteration["timings"])
    return Group(f"Iteration {iteration['number']}", *_shown(sections, report.get("warning")))


def run_tables(run: Object) -> Group:
    return Group(*_shown(run_sections(run), run["warning"]))


def _shown(sections: Iterable[Section], warning: str | None) -> Iterable[Table | str]:
    for section in sections:
        yield _records(section) if len(section.header) > MAX_COLUMNS else _grid(section)
        yield from map(plain, section.notes)
    if warning:
        yield f"[yellow]{plain(warning)}[/]"


def _grid(section: Section) -> Table:
    table = Table(
        *map(plain, section.header),
        title=plain(section.title),
        title_justify="left",
        show_header=any(section.header),
    )
    for row in section.rows:
        table.add_row(*map(plain, row))
    return table


def _records(section: Section) -> Table:
    """Every row as lines of a name and a figure: the columns would be cut on a terminal."""
    table = Table(title=plain(section.title), title_justify="left", show_header=False)
    for row in section.rows:
        for name, cell in zip(section.header, row, strict=True):
            if cell:
                table.add_row(plain(name), plain(cell))
        table.add_section()
    return table
