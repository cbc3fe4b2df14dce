"""The files of a table's report, written from the files of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recdenoise import checkpoint
from recdenoise.errors import UserError
from recdenoise.reports import markdown, table_page
from recdenoise.reports.comparison import cell_csv, collect, run_csv, summary, table_rows, unfinished
from recdenoise.reports.grid import Cell, TableSpec
from recdenoise.reports.significance import paired_tests


def write_texts(report: Path, texts: dict[str, str]) -> list[Path]:
    """Write ``REPORT`` with every ending; returns the paths."""
    paths = []
    for ending, text in texts.items():
        path = report.with_name(report.name + ending)
        checkpoint.write_text(path, text)
        paths.append(path)
    return paths


def write_report(
    table: TableSpec, cells: Sequence[Cell], out: Path, report: Path, command: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.md``, ``REPORT.csv`` (cells), ``REPORT-runs.csv`` (seeds), ``REPORT.html`` from files in ``out``.

    Returns:
        The files, and the lines of :func:`summary` and :func:`unfinished`.

    Raises:
        UserError: no run has finished: a report without a number would take the place of one with some.
    """
    runs = collect(cells, out)
    if not runs:
        raise UserError(f"No run under {out} has finished: there is nothing to report.")
    rows = table_rows(table, cells, runs)
    tests = paired_tests(table, runs)
    texts = {
        ".md": markdown.markdown(table, cells, runs, rows, tests, command),
        ".csv": cell_csv(rows),
        "-runs.csv": run_csv(runs),
        ".html": table_page.page(table, cells, runs, rows, tests, command),
    }
    return write_texts(report, texts), [*summary(rows), *unfinished(cells, runs)]
