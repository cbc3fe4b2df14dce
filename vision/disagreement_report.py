"""The pages of Figure 2: Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recdenoise import checkpoint
from recdenoise.reports.report_text import markdown_table
from vision.data import derived
from vision.disagreement import CLEAN, NOISY, PARTS, RUN, Array, Key, Spec, accuracy_rows, figure_rows


def write(
    spec: Spec,
    predicted: Mapping[Key, Mapping[str, Array]],
    wrong: Mapping[str, Array],
    data: Mapping[str, Array],
    records: Sequence[Mapping[str, Any]],
    report: Path,
    command: Sequence[str],
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.md``, ``REPORT.csv`` and ``REPORT.png``; returns the paths, and what the figure comes to."""
    rows, learned = figure_rows(predicted, wrong), accuracy_rows(predicted, wrong, data)
    picture = report.with_name(report.name + ".png")
    lines = conclusions(rows)
    report.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, picture)
    texts = {".md": page(spec, rows, learned, lines, records, picture.name, command), ".csv": as_csv(rows)}
    paths = []
    for ending, text in texts.items():
        path = report.with_name(report.name + ending)
        checkpoint.write_text(path, text)
        paths.append(path)
    return [*paths, picture], lines


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Mapping[str, Any]]]]:
    """(part, kind) -> pair -> labels -> row, in the order of the rows."""
    found: dict[tuple[str, str], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        found.setdefault((row["part"], row["kind"]), {}).setdefault(row["pair"], {})[row["labels"]] = row
    return found


def conclusions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """In how many comparisons networks disagree more where the label is wrong."""
    lines = []
    for (part, kind), pairs in grouped(rows).items():
        more = sum(by[NOISY]["disagreement"] > by[CLEAN]["disagreement"] for by in pairs.values())
        lines.append(
            f"{kind}, {PARTS[part]}: they disagree more where the label is wrong in {more} of {len(pairs)} comparisons"
        )
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars for every comparison, a panel for each part and kind."""
    from recdenoise.reports import charts

    panels = []
    for (part, kind), pairs in grouped(rows).items():
        bars = {
            group: [(by[group]["disagreement"], by[group]["std"]) for by in pairs.values()] for group in (CLEAN, NOISY)
        }
        heading = f"{kind}: {PARTS[part]}"
        panels.append(charts.grouped_bars(heading, "share of images classified differently", list(pairs), bars))
    charts.write_png(panels, path)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first column is text."""
    return markdown_table(columns, rows, left=1)


def show(row: Mapping[str, Any]) -> str:
    """``0.0312 ± 0.0011``."""
    spread = "" if row["std"] is None else f" ± {row['std']:.4f}"
    return f"{row['disagreement']:.4f}{spread}"


def page(
    spec: Spec,
    rows: Sequence[Mapping[str, Any]],
    learned: Sequence[Mapping[str, Any]],
    lines: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    picture: str,
    command: Sequence[str],
) -> str:
    """The figure's page in Markdown."""
    text = [
        f"# Where networks disagree: {derived.title(spec.dataset)}, {spec.noise}",
        "",
        "As in: DeCA, Figure 2. Every network is trained plainly on the same images and the same noisy labels, to the "
        "last epoch. Shown: the share of images that two networks (same seed), or two seeds of one network, put into "
        "different classes.",
        "",
        "The paper says that it looks at the test set. There noise is drawn for labels that no network has seen, so "
        "that images with right and with wrong labels differ by chance alone. The paper's argument, that networks fit "
        "different parts of the noise, is one about the images they learned from. Both are shown.",
        "",
        f"![share of images classified differently]({picture})",
        "",
    ]
    for (part, kind), pairs in grouped(rows).items():
        n = {group: next(iter(pairs.values()))[group]["images"] for group in (CLEAN, NOISY)}
        columns = ["pair", *(f"{group} ({n[group]:,} images)" for group in (CLEAN, NOISY)), "wrong / right"]
        cells = []
        for pair, by in pairs.items():
            right = by[CLEAN]["disagreement"]
            ratio = f"{by[NOISY]['disagreement'] / right:.2f}" if right else "–"
            cells.append([pair, show(by[CLEAN]), show(by[NOISY]), ratio])
        text += [f"## {kind}: {PARTS[part]}", "", *table(columns, cells), ""]
    names = ["test", "right labels fitted", "wrong labels fitted"]
    cells = [[r["network"], str(r["seed"]), *(f"{100 * r[name]:.2f} %" for name in names)] for r in learned]
    text += ["## What each network learned", ""]
    text += ["Accuracy on the clean test; share of the training labels that are given back.", ""]
    text += [
        *table(["network", "seed", *names], cells),
        "",
        *(f"- {line}" for line in lines),
        "",
        "## Circumstances",
        "",
    ]
    options = ", ".join(f"`{key}: {value}`" for key, value in {**RUN, **spec.options}.items())
    versions = {f"{k} {v}" for r in records for k, v in r["versions"].items()}
    text += [f"- Command: `{shlex.join(command)}`", f"- Options of every run: {options}"]
    text += [f"- Versions: {', '.join(sorted(versions))}; device {', '.join(sorted({r['device'] for r in records}))}"]
    text += [f"- Seconds of training, all runs: {sum(r['seconds']['train'] for r in records):.0f}", ""]
    return "\n".join(text)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one kind as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
