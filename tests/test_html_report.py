"""The page of a report: whole, self-contained, free of scripts, and shown by a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from recdenoise.reports import charts, grid, table_report
from recdenoise.reports.charts import bars
from recdenoise.reports.html import Entry, Page, page_of
from recdenoise.reports.report_text import cells_of, markdown_table
from tests.test_grid import fake

VOID = {"meta", "br", "img", "path", "use", "line", "rect", "circle"}
LOADING = {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"}


class Reader(HTMLParser):
    """Checks that elements close, collects what a browser would load, identifiers, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.cells: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in LOADING]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append((dict(attrs).get("class") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "td":
            self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)


def no_outside(text: str) -> Reader:
    """Read a page and see that nothing on it comes from elsewhere."""
    reader = Reader(text)
    assert all(value.startswith(("#", "data:")) for value in reader.loads), reader.loads
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL) + re.findall(r'style="([^"]*)"', text)
    for style in styles:
        assert "@import" not in style
        assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^)'\"]*)", style))
    assert not reader.tags & {"script", "link", "iframe", "object", "embed", "base", "video", "audio", "img"}
    assert not re.search(r"\son\w+=", text)
    assert "default-src 'none'" in text
    assert len(reader.ids) == len(set(reader.ids))
    return reader


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of made-up runs of Table 2: print is met by one cell and missed by others."""
    folder = tmp_path_factory.mktemp("report")
    table = grid.read_table("table2")
    cells = grid.plan(table, models=["GMF", "NeuMF"], methods=["normal", "t_ce", "deca_p"], n_seeds=2)
    rng = np.random.default_rng(0)
    for cell in cells[:-1]:
        recall = {"normal": 0.0921, "t_ce": 0.0800, "deca_p": 0.1100}[cell.method]
        metrics = {"recall@3": 0.02, "recall@20": recall, "ndcg@3": 0.03, "ndcg@20": 0.0599}
        fake(folder / cell.name, cell, {"test": metrics})
        rows = [f"{u},{v},{v}" for u, v in enumerate(rng.random(30) + 20 * recall)]
        (folder / cell.name / "users.csv").write_text("\n".join(["user,recall@20,ndcg@20", *rows]), encoding="utf-8")
        lines = [f"train,{e},{1 / e},1.0,9,{2 / e}" for e in range(1, 6)]
        header = "stage,epoch,loss,seconds,steps,valid_loss"
        (folder / cell.name / "metrics.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    paths, _ = table_report.write_report(table, cells, folder, folder / "t2", ["recdenoise", "benchmark", "<table2>"])
    (page,) = (path for path in paths if path.suffix == ".html")
    return page


def test_the_page_is_whole_and_loads_nothing(report: Path) -> None:
    reader = no_outside(report.read_text(encoding="utf-8"))
    text = " ".join(" ".join(reader.text).split())
    for words in (
        *("GMF on ml-100k", "NeuMF on ml-100k", "Paired tests", "Training", "Settings", "Circumstances"),
        *("recdenoise benchmark '<table2>'", "seeds 2020, 2021", "torch 2.9", "Plan 9, abacus, 2 cores", "selector"),
        *("5% below print or more", "1 of 16 runs have not finished", "Wilcoxon", "Holm"),
    ):
        assert words in text, words
    assert {"svg", "details", "table"} <= reader.tags


def test_differences_are_coloured_and_named(report: Path) -> None:
    cells = no_outside(report.read_text(encoding="utf-8")).cells
    found = {text: classes for classes, text in cells}
    assert found["-0.0029 (-3%)"] == "down-some"  # GMF Normal, print .095
    assert found["-0.0180 (-18%)"] == "down"  # GMF T-CE, print .098
    assert found["+0.0110 (+11%)"] == "up"  # GMF DeCA(p), print .099
    assert found["+0.0009 (+2%)"] == "up-some"  # N@20 of GMF Normal, print .059
    assert any("▲" in text for _, text in cells)
    assert "T-CE · not reached" in found


def test_plots_are_text_in_the_pages_colours() -> None:
    panels = [
        charts.bars("A & B", "R@20", ["Normal", "DeCA(p)"], [(0.1, 0.01), None], {"paper": [0.1, None]}),
        charts.grouped_bars("<b>", "share", ["x", "y"], {"one": [(0.1, None), (0.2, 0.1)], "two": [None, (0.2, 0.1)]}),
        charts.lines("c", "epoch", "R@20", [charts.Line("Normal", [1, 2], [0.1, 0.2], [0.0, 0.1], [0.2, 0.3])], 0.0),
        charts.heat_map("d", "c_2", "c_1", ["1", "10"], ["1"], np.array([[0.1, np.nan]])),
    ]
    page = Page("plots")
    page.plots([*panels, panels[0]][:4])
    page.plots(panels[2:], "More")
    first = charts.svg(panels[0])
    assert first == charts.svg(panels[0])  # the same file from the same runs
    assert charts.INK not in first
    assert "currentColor" in first
    assert "<metadata" not in first
    assert "A &amp; B" in first
    text = Page("plots")
    text.plots(panels)
    reader = no_outside(text.render())
    words = " ".join(reader.text)
    assert all(word in words for word in ("Normal", "DeCA(p)", "paper", "epoch", "share", "0.1000"))
    assert "1 | observed" not in words


def test_pictures_have_every_panel(tmp_path: Path) -> None:
    from matplotlib import image

    panel = charts.lines("c", "epoch", "R@20", [charts.Line("Normal", [1, 2], [0.1, 0.2])])
    charts.write_png([panel], tmp_path / "one.png")
    charts.write_png([panel] * 3, tmp_path / "three.png", columns=2)
    one, three = image.imread(tmp_path / "one.png"), image.imread(tmp_path / "three.png")
    assert three.shape[:2] == (2 * one.shape[0], 2 * one.shape[1])
    assert three[one.shape[0] :, one.shape[1] :, :3].min() == 1.0  # the fourth place is empty


def test_dollars_in_names_are_dollars(tmp_path: Path) -> None:
    name = "a $x_^$ b"
    panels = [
        charts.bars(name, name, [name], [(0.5, None)], {name: [0.4]}),
        charts.grouped_bars(name, name, [name], {name: [(0.5, None)]}),
        charts.lines(name, name, name, [charts.Line(name, [1, 2], [0.1, 0.2])] * 2),
        charts.heat_map(name, name, name, [name], [name], np.ones((1, 1))),
    ]
    charts.write_png(panels, tmp_path / "all.png")
    for panel in panels:
        assert charts.svg(panel).count(name) >= 3


def test_text_is_escaped() -> None:
    page = Page("<script>")
    page.heading("<i>")
    page.paragraph("a < b & `c<d` **e**")
    page.table(["<x>"], [[Entry('"<td>', "up")]])
    page.bullets(["- <li>"])
    text = page.render()
    assert "<script" not in text
    assert "<code>c&lt;d</code> <strong>e</strong>" in text
    assert Reader(text).cells == [("text up", '"<td>')]


def test_markdown_reports_become_pages() -> None:
    text = "# A title\n\n- one `x`\n- two\n\nA paragraph\nof two lines.\n\n![p](p.png)\n\n## Part\n\n"
    text += "| name | n |\n|---|---:|\n| a | 1 |\n| b |  |\n\nEnd.  \nMore.\n"
    made = page_of(text)
    assert made.title == "A title"
    reader = no_outside(made.render())
    assert [cell for _, cell in reader.cells] == ["a", "1", "b", ""]
    assert [classes for classes, _ in reader.cells][:2] == ["text", ""]
    assert "A paragraph of two lines." in " ".join(reader.text)
    assert "<svg" not in made.render()
    drawn = page_of(text, {"Part": [bars("t", "u", ["b"], [(0.5, None)])], "Absent": []}).render()
    assert drawn.index("Part</h2>") < drawn.index("<svg") < drawn.index("<table>")


@pytest.mark.parametrize("cell", ["Loss | soft", "A|B", "| a", "a |", "|", "a || b", "a \\| b", "\\", ""])
def test_bars_in_cells_part_nothing(cell: str) -> None:
    lines = markdown_table([cell, "n"], [[cell, "1"], ["b", cell]], left=1)
    assert [cells_of(line) for line in lines] == [[cell, "n"], ["---", "---:"], [cell, "1"], ["b", cell]]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    shown = [text for _, text in no_outside(page_of("\n".join(["# t", "", *lines])).render()).cells]
    assert shown == [cell, "1", "b", cell]


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ),
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed; the page is parsed by the other tests")
def test_a_browser_shows_the_page(report: Path, tmp_path: Path) -> None:
    from matplotlib import image

    assert BROWSER is not None
    picture = tmp_path / "page.png"
    words = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900"]
    done = subprocess.run(
        [*words, f"--screenshot={picture}", report.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert picture.is_file(), done.stderr
    shown = image.imread(picture)[:, :, :3]
    assert shown.shape == (900, 1200, 3)
    # The ground, ink, and the colours of good and bad differences are all there.
    flat = np.unique((shown * 255).round().astype(int).reshape(-1, 3), axis=0)
    for colour in ((255, 255, 255), (0xCF, 0xE6, 0xFB), (0xFB, 0xD3, 0xA6), (0x12, 0x87, 0x7A)):
        assert (np.abs(flat - np.array(colour)).max(1) <= 2).any(), colour
