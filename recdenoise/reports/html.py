"""A report as one page: no script, nothing loaded from anywhere, light or dark as the reader's system is."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from recdenoise.reports.charts import Panel, svg
from recdenoise.reports.report_text import cells_of

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2126; --quiet: #5b6670; --rule: #d9dee3; --grid: #dfe3e7;
  --band: #f4f6f8; --up: #cfe6fb; --up-some: #e8f3fd; --down-some: #fdeedd; --down: #fbd3a6; --accent: #1b6fb3; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --ink: #e4e8ec; --quiet: #9aa6b1; --rule: #333b43;
  --grid: #353d45; --band: #1c2228; --up: #134a77; --up-some: #17334b; --down-some: #45310f; --down: #7a4a0c;
  --accent: #6fb5ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.4rem) 4rem; max-width: 122rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, ul { max-width: 62rem; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 600; }
thead tr:first-child th { border-bottom-color: transparent; }
thead tr:last-child th { border-bottom: 1px solid var(--quiet); }
th.text, td.text { text-align: left; }
th.group { text-align: center; color: var(--ink); border-left: 1px solid var(--rule); }
td.wrap { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--ground); }
td.first { border-left: 1px solid var(--rule); }
tr.beside td { color: var(--quiet); }
.up { background: var(--up); } .up-some { background: var(--up-some); }
.down-some { background: var(--down-some); } .down { background: var(--down); }
.key { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; padding: 0; list-style: none; font-size: .875rem; }
.key i { display: inline-block; width: 1.1em; height: 1.1em; margin-right: .4em; vertical-align: -.2em;
  border: 1px solid var(--rule); }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--band); border-radius: .4rem; padding: .5rem .9rem; min-width: 8rem; }
.tiles b { display: block; font-size: 1.25rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 1.4rem; margin: .8rem 0; }
.plots figure { margin: 0; flex: 0 1 auto; max-width: 100%; }
svg.plot { width: 100%; height: auto; color: var(--ink); }
svg.plot text { font-family: system-ui, sans-serif !important; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); font-weight: 600; }
@media print { details > * { display: block; } }
"""

WRAPPED = ("chosen", "options")
"""Columns of long text in a report's Markdown."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def inline(text: str) -> str:
    """Escaped text, in which backticks mark code and double asterisks strong words."""
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


@dataclass(frozen=True)
class Entry:
    """A cell of a table: text, and classes that colour it."""

    text: str
    classes: str = ""


@dataclass
class Page:
    """A page under construction; every method adds to its end."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        """A heading."""
        self.parts.append(f"<h{level}>{inline(text)}</h{level}>")

    def paragraph(self, text: str, quiet: bool = False) -> None:
        """A paragraph."""
        kind = ' class="quiet"' if quiet else ""
        self.parts.append(f"<p{kind}>{inline(text)}</p>")

    def bullets(self, lines: Iterable[str]) -> None:
        """A list; a leading ``- `` is dropped."""
        entries = "".join(f"<li>{inline(line.removeprefix('- '))}</li>" for line in lines)
        self.parts.append(f"<ul>{entries}</ul>")

    def tiles(self, tiles: Iterable[tuple[str, str]]) -> None:
        """Large numbers with their names."""
        inner = "".join(f"<div><b>{inline(value)}</b>{inline(name)}</div>" for value, name in tiles)
        self.parts.append(f'<div class="tiles">{inner}</div>')

    def key(self, entries: Iterable[tuple[str, str]]) -> None:
        """What colours mean: class and words."""
        inner = "".join(f'<li><i class="{c}"></i>{inline(text)}</li>' for c, text in entries)
        self.parts.append(f'<ul class="key">{inner}</ul>')

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Entry]],
        left: int = 1,
        groups: Sequence[tuple[str, int]] = (),
        wrapped: Sequence[int] = (),
        beside: Sequence[int] = (),
    ) -> None:
        """A table that scrolls by itself on a narrow screen.

        Args:
            columns, rows: texts.
            left: so many first columns are text.
            groups: a line above the columns: name and number of columns it spans.
            wrapped: columns of long text.
            beside: rows in quiet ink.
        """
        head = "".join(
            f'<th class="{"group" if name else ""}" colspan="{span}">{inline(name)}</th>' for name, span in groups
        )
        head = f"<tr>{head}</tr>" if groups else ""
        kind = ["text" if i < left else "" for i in range(len(columns))]
        names = "".join(f'<th class="{kind[i]}" scope="col">{inline(name)}</th>' for i, name in enumerate(columns))
        body = []
        for number, row in enumerate(rows):
            cells = []
            for i, entry in enumerate(row):
                entry = entry if isinstance(entry, Entry) else Entry(entry)
                classes = " ".join(c for c in (kind[i], entry.classes, "wrap" if i in wrapped else "") if c)
                cells.append(
                    f'<td class="{classes}">{inline(entry.text)}</td>' if classes else f"<td>{inline(entry.text)}</td>"
                )
            mark = ' class="beside"' if number in beside else ""
            body.append(f"<tr{mark}>{''.join(cells)}</tr>")
        head = f"<thead>{head}<tr>{names}</tr></thead>"
        self.parts.append(f'<div class="scroll"><table>{head}<tbody>{"".join(body)}</tbody></table></div>')

    def plots(self, panels: Sequence[Panel], summary: str = "") -> None:
        """Plots beside each other; under a line that opens them where ``summary`` is given."""
        if not panels:
            return
        inner = "".join(f"<figure>{svg(panel)}</figure>" for panel in panels)
        inner = f'<div class="plots">{inner}</div>'
        self.parts.append(f"<details><summary>{inline(summary)}</summary>{inner}</details>" if summary else inner)

    def render(self) -> str:
        """The whole page."""
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        )
        body = "\n".join(self.parts)
        return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def page_of(text: str, plots: Mapping[str, Sequence[Panel]] | None = None) -> Page:
    """A report's Markdown as a page: headings, paragraphs, lists, pictures left out, tables. Raises nothing.

    Args:
        text: the Markdown.
        plots: plots below a heading, by its words.
    """
    lines = text.splitlines()
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "Report")
    page = Page(title)
    for block in re.split(r"\n\s*\n", text.strip()):
        inner = block.splitlines()
        level = len(block) - len(block.lstrip("#"))
        if level and len(inner) == 1:
            words = block.lstrip("# ")
            page.heading(words, level)
            page.plots((plots or {}).get(words, ()))
        elif inner[0].startswith("|"):
            rows = [cells_of(line) for line in inner]
            left = sum(not mark.endswith(":") for mark in rows[1])
            page.table(rows[0], rows[2:], left, wrapped=[i for i, name in enumerate(rows[0]) if name in WRAPPED])
        elif all(line.startswith("- ") for line in inner):
            page.bullets(inner)
        elif not block.startswith("!["):
            for line in block.split("  \n"):
                page.paragraph(" ".join(line.split()))
    return page
