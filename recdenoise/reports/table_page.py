"""A table's report as one HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from recdenoise.reports import charts, markdown
from recdenoise.reports.comparison import Finished, Row, summary, unfinished
from recdenoise.reports.curves import band, read_history
from recdenoise.reports.grid import Cell, TableSpec
from recdenoise.reports.html import Entry, Page
from recdenoise.reports.significance import PairedTest, explanation

CLOSE = 0.05
"""Share of print beyond which a difference gets the strong colour."""

COLOUR_KEY = (
    ("up", "5% above print or more"),
    ("up-some", "above print"),
    ("down-some", "below print by less than 5%"),
    ("down", "5% below print or more"),
)

MARKS = {"better": " ▲", "worse": " ▼"}


def difference_entry(row: Row) -> Entry:
    """Our mean less the printed one, coloured by its share of print."""
    if row.difference is None or row.printed is None:
        return Entry("–")
    share = row.difference / row.printed.mean if row.printed.mean else 0.0
    strong = abs(share) >= CLOSE
    kind = ("up" if strong else "up-some") if share >= 0 else ("down" if strong else "down-some")
    return Entry(f"{row.difference:+.4f} ({share:+.0%})", kind)


def model_section(page: Page, table: TableSpec, rows: Sequence[Row], tests: Sequence[PairedTest]) -> None:
    """Heading, table and bars of one model on one data set."""
    dataset, model = rows[0].dataset, rows[0].model
    page.heading(f"{model} on {dataset}")
    verdicts = {(t.method, t.variant, t.metric): t.verdict for t in tests if (t.dataset, t.model) == (dataset, model)}
    blocks = markdown.blocks_of(rows)
    names = table.shown_for(dataset)
    references = {
        name: [
            kind
            for kind, known in (
                ("public code", any(b[name].code is not None and b[name].compared for b in blocks.values())),
                ("clean run", any(b[name].clean is not None and b[name].compared for b in blocks.values())),
            )
            if known and name in (table.required_for(dataset) or names)
        ]
        for name in names
    }
    lines, beside = [], []
    for place, ((label, _), metrics) in enumerate(blocks.items()):
        line: list[str | Entry] = [
            label + (" · not reached" if any(m.reached is False for m in metrics.values()) else "")
        ]
        for name in names:
            row = metrics[name]
            mark = MARKS.get(verdicts.get((row.method, row.variant, name), ""), "")
            line.append(Entry(markdown.show(row.ours) + mark, "first"))
            line.append(markdown.show(row.printed, 3) if row.compared else "")
            line.append(difference_entry(row) if row.compared else "")
            values = {
                "public code": "–" if row.code is None else f"{row.code:.4f}",
                "clean run": markdown.show_range(row.clean),
            }
            line += [values[kind] if row.compared else "" for kind in references[name]]
        if not next(iter(metrics.values())).compared:
            beside.append(place)
        lines.append(line)
    columns = ["method"]
    for name in names:
        columns += ["ours", "paper", "ours − paper", *references[name]]
    groups = [("", 1), *((markdown.short(name), 3 + len(references[name])) for name in names)]
    page.table(columns, lines, groups=groups, beside=beside)
    page.plots([bar_panel(name, blocks) for name in table.required_for(dataset) or names])


def bar_panel(metric: str, blocks: Mapping[tuple[str, str], Mapping[str, Row]]) -> charts.Panel:
    """Every compared row of a model as a bar, with print and other references as marks."""
    rows = [metrics[metric] for metrics in blocks.values() if metrics[metric].compared]
    marks = {
        "paper": [None if r.printed is None else r.printed.mean for r in rows],
        "public code": [r.code for r in rows],
        "clean run": [None if r.clean is None else statistics.fmean(r.clean) for r in rows],
    }
    values = [None if r.ours is None else (r.ours.mean, r.ours.std) for r in rows]
    colours = [charts.COLOURS.get(r.method, charts.PALETTE[7]) for r in rows]
    unit = f"{markdown.short(metric)}, mean ± std over seeds"
    labels = [r.label for r in rows]
    return charts.bars(f"{rows[0].model} on {rows[0].dataset}", unit, labels, values, marks, colours)


def training_panels(runs: Sequence[Finished]) -> list[charts.Panel]:
    """For every compared cell the loss of its last stage and, where a validation value was measured, that value."""
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for run in runs:
        if run.cell.variant.compared:
            groups.setdefault(run.cell.group, []).append(run)
    panels = []
    for members in groups.values():
        cell = members[0].cell
        histories = [list(read_history(m.folder).values()) for m in members]
        last = [h[-1] for h in histories if h]
        colour = charts.COLOURS.get(cell.method, charts.PALETTE[7])
        for column in dict.fromkeys(name for h in last for name in h if not name.endswith(" epoch")):
            curves = [(h[f"{column} epoch"], h[column]) for h in last if column in h]
            curve = band(cell.label_of(), curves, colour)
            if len(curve.x) > 1:
                name = "training loss" if column == "loss" else f"validation {column.removeprefix('valid_')}"
                title = f"{cell.settings.model}, {cell.label_of()}"
                panels.append(charts.lines(title, "epoch", name, [curve]))
    return panels


def page(
    table: TableSpec,
    cells: Sequence[Cell],
    runs: Sequence[Finished],
    rows: Sequence[Row],
    tests: Sequence[PairedTest],
    command: Sequence[str],
) -> str:
    """The whole report: what was reached, tables, bars, tests, curves, settings, circumstances."""
    headline, *missed = [*summary(rows), *unfinished(cells, runs)]
    made = Page(table.title)
    made.heading(table.title, 1)
    protocol = cells[0].settings.protocol
    seeds = sorted({r.result["seed"] for r in runs})
    hours = sum(r.job["seconds"] for r in runs if r.job) / 3600
    made.paragraph(f"{markdown.beside_print(table, protocol)} Protocol `{protocol}`.", quiet=True)
    n, m = headline.split(" of ")[0], headline.split(" of ")[1].split()[0]
    told = f"{hours:.1f} h" if hours >= 0.5 else f"{hours * 60:.0f} min"
    tiles = [(f"{n} / {m}", "required cells reached")] if m != "0" else []
    tiles += [(f"{len(runs)} / {len(cells)}", "runs finished"), (", ".join(map(str, seeds)), "seeds")]
    made.tiles([*tiles, *([(told, "of processes with one thread")] if hours else [])])
    for line in markdown.rules(table, rows):
        made.paragraph(line)
    made.key(COLOUR_KEY)
    if tests:
        base = "Normal" if table.base == "normal" else "the plain run of the same method"
        made.paragraph(f"▲ better, ▼ worse than {base} by a paired test over users, p < .05 after correction.")
    for dataset, model in dict.fromkeys((row.dataset, row.model) for row in rows):
        model_section(made, table, [row for row in rows if (row.dataset, row.model) == (dataset, model)], tests)
    populations = markdown.population_rows(table, rows)
    if populations:
        made.heading("Warm and cold users")
        for note in markdown.population_notes(runs):
            made.paragraph(note)
        made.table(markdown.POPULATION_COLUMNS, populations, left=3)
    if tests:
        made.heading("Paired tests")
        made.paragraph(explanation(tests))
        colours = {"better": "up-some", "worse": "down-some"}
        lines: list[list[str | Entry]] = [
            [*told[:-1], Entry(told[-1], colours.get(told[-1], ""))] for told in markdown.test_rows(tests)
        ]
        made.table(markdown.TEST_COLUMNS, lines, left=4)
    made.heading("Training")
    made.paragraph(
        "Last stage of every compared cell, mean over seeds; the band reaches from the lowest seed to the highest."
    )
    panels = training_panels(runs)
    for model in dict.fromkeys(p.alt.split(",")[0] for p in panels):
        made.plots([p for p in panels if p.alt.split(",")[0] == model], f"Curves of {model}")
    made.heading("Not reached")
    made.bullets(missed or ["Nothing: every required cell is reached."] if m != "0" else ["Nothing is required here."])
    made.heading("Settings")
    made.table(markdown.SETTINGS_COLUMNS, markdown.settings_rows(runs), left=6, wrapped=(3,))
    made.heading("Circumstances")
    made.bullets(markdown.circumstances([r.result for r in runs], [r.job for r in runs if r.job], command, protocol))
    return made.render()
