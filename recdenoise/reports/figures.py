"""Figures of the DeCA paper from finished runs: numbers as CSV, a PNG, Markdown and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from recdenoise.errors import UserError
from recdenoise.reports import charts, markdown
from recdenoise.reports.comparison import Finished, collect, unfinished
from recdenoise.reports.figure_content import Content
from recdenoise.reports.grid import KEPT, Cell, TableSpec, to_csv
from recdenoise.reports.html import Page
from recdenoise.reports.prediction_figures import differences, ratings
from recdenoise.reports.table_report import write_texts
from recdenoise.reports.training_figures import curves, heat_map

FIGURES: dict[str, Callable[[TableSpec, Sequence[Finished]], Content]] = {
    "differences": differences,
    "curves": curves,
    "heat_map": heat_map,
    "ratings": ratings,
}


def figure_markdown(
    table: TableSpec, runs: Sequence[Finished], content: Content, picture: str, about: Sequence[str]
) -> str:
    """The figure's page in Markdown."""
    lines = [f"# {table.title}", "", f"As in: {table.source}.", "", *about, ""]
    lines += [line for note in content.notes for line in (note, "")]
    lines += [f"![{table.title}]({picture})", ""]
    for heading, columns, rows, left in content.tables:
        lines += [f"## {heading}", "", *markdown.markdown_table(columns, rows, left), ""]
    lines += [
        "## Settings",
        "",
        *markdown.markdown_table(markdown.SETTINGS_COLUMNS, markdown.settings_rows(runs), 6),
        "",
    ]
    return "\n".join([*lines, *(f"{line}.  " for line in content.lines), ""])


def figure_page(table: TableSpec, runs: Sequence[Finished], content: Content, about: Sequence[str]) -> str:
    """The figure's HTML page."""
    page = Page(table.title)
    page.heading(table.title, 1)
    page.paragraph(f"As in: {table.source}.", quiet=True)
    for note in content.notes:
        page.paragraph(note)
    page.plots(content.panels)
    page.bullets(f"{line}." for line in content.lines)
    for heading, columns, rows, left in content.tables:
        page.heading(heading)
        page.table(columns, rows, left)
    page.heading("Settings")
    page.table(markdown.SETTINGS_COLUMNS, markdown.settings_rows(runs), left=6, wrapped=(3,))
    page.heading("Circumstances")
    page.bullets(about)
    return page.render()


def write_report(
    table: TableSpec, cells: Sequence[Cell], out: Path, report: Path, command: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.md``, ``REPORT.csv``, ``REPORT.html`` and ``REPORT.png`` from the files under ``out``.

    Returns:
        The files, and what the figure comes to; runs that are missing are told last.

    Raises:
        UserError: no run has finished, or the data lack what the figure needs.
    """
    runs = [r for r in collect(cells, out) if all((r.folder / KEPT[name]).is_file() for name in table.keeps)]
    if not runs:
        raise UserError(f"{out} has no finished run of this figure.")
    content = FIGURES[table.report](table, runs)
    if not content.rows:
        raise UserError(f"The {len(runs)} finished runs under {out} are too few for this figure.")
    jobs = [run.job for run in runs if run.job]
    about = markdown.circumstances([r.result for r in runs], jobs, command, cells[0].settings.protocol)
    about += [f"- {line}" for line in unfinished(cells, runs)]
    picture = report.with_name(report.name + ".png")
    texts = {
        ".md": figure_markdown(table, runs, content, picture.name, about),
        ".csv": to_csv(list(dict.fromkeys(key for row in content.rows for key in row)), content.rows),
        ".html": figure_page(table, runs, content, about),
    }
    paths = write_texts(report, texts)
    charts.write_png(content.panels, picture, content.columns)
    return [*paths, picture], ["", *content.lines, *unfinished(cells, runs)]
