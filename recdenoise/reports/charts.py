"""Small plots, each as SVG for a page (it takes the page's colours, light or dark) and together as a PNG."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from recdenoise import checkpoint

INK, FAINT = "#15191d", "#d5d9dd"
"""Of text and axes, of grid lines. In an SVG they become the page's own."""

PALETTE = ("#6b7785", "#a0713c", "#d9822b", "#8e5bb5", "#2f80c2", "#12877a", "#c2465a", "#7a8f1f")
"""Colours that read on white and on black."""

COLOURS = dict(zip(("normal", "wbpr", "t_ce", "ensemble", "deca", "deca_p", "r_ce"), PALETTE, strict=False))
"""The same colour for a method in every plot."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "recdenoise",
}


@dataclass(frozen=True)
class Panel:
    """One plot: a function that draws it on given axes, its size in inches, and its content in words."""

    draw: Callable[[Any], None]
    alt: str
    width: float = 3.9
    height: float = 2.7


@contextmanager
def drawing() -> Iterator[Any]:
    """``pyplot`` in this project's style, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(dict[Any, Any](STYLE)):
        try:
            yield plt
        finally:
            plt.close("all")


def svg(panel: Panel) -> str:
    """The plot as an ``<svg>`` element: text stays text, ink is ``currentColor``, nothing points outside."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(panel.width, panel.height), layout="constrained")
        panel.draw(axes)
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Identifiers repeat between plots of one page: each plot gets its own.
    mark = "p" + hashlib.sha256((panel.alt + text).encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{mark}-', text)
    text = re.sub(r'(xlink:href="|href="|url\()#', rf"\g<1>#{mark}-", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--grid)")
    width, height = (round(inches * 96) for inches in (panel.width, panel.height))
    head = f'<svg class="plot" role="img" aria-label="{escape(panel.alt)}" style="max-width:{width}px" '
    view = re.search(r'viewBox="[^"]*"', text)
    size = f'width="{width}" height="{height}"'
    return f"{head}{view[0] if view else ''} {size}>" + text[text.index(">") + 1 :]


def write_png(panels: Sequence[Panel], path: Path, columns: int = 2) -> None:
    """All plots in one picture, ``columns`` of them a row. Raises ``UserError`` where it cannot be written."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (max(p.width for p in panels) * columns, max(p.height for p in panels) * rows)
    with drawing() as plt:
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            panel.draw(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        with checkpoint.atomic_file(path) as file:
            figure.savefig(file, dpi=140, format="png", metadata={"Software": None})


def legend_below(axes: Any, columns: int) -> None:
    """The legend under the axis' name, at a distance that does not depend on the axes' height."""
    from matplotlib.transforms import ScaledTranslation

    inches = ScaledTranslation(0, -0.42, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, 0.0),
        bbox_transform=axes.transAxes + inches,
        borderaxespad=0,
        ncols=columns,
    )


MARKS = {"paper": "D", "public code": "X", "clean run": "|"}


def bars(
    title: str,
    unit: str,
    labels: Sequence[str],
    values: Sequence[tuple[float, float | None] | None],
    marks: Mapping[str, Sequence[float | None]] | None = None,
    colours: Sequence[str] | None = None,
    limit: float | None = None,
) -> Panel:
    """Lying bars, the first on top.

    Args:
        title: above.
        unit: of the values: the axis' name.
        labels: of the bars.
        values: mean and standard deviation (or ``None``) of each; ``None`` leaves the place empty.
        marks: further values for each bar, by name: what print says.
        colours: of the bars.
        limit: end of the axis; as the data need by default.
    """

    def draw(axes: Any) -> None:
        places = np.arange(len(labels))[::-1]
        shown = [
            (p, v, (colours or [PALETTE[4]] * len(labels))[i])
            for i, (p, v) in enumerate(zip(places, values, strict=True))
        ]
        drawn = [(place, value, colour) for place, value, colour in shown if value is not None]
        if drawn:
            axes.barh(
                [p for p, _, _ in drawn],
                [v[0] for _, v, _ in drawn],
                height=0.62,
                color=[c for _, _, c in drawn],
                xerr=[v[1] or 0.0 for _, v, _ in drawn],
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
        for name, numbers in (marks or {}).items():
            there = [(n, p) for n, p in zip(numbers, places, strict=True) if n is not None]
            if there:
                x, y = zip(*there, strict=True)
                size = 90 if MARKS.get(name) == "|" else 22
                axes.scatter(x, y, marker=MARKS.get(name, "o"), s=size, color=INK, linewidths=1, zorder=4, label=name)
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit)
        axes.set_xlim(0, limit)
        axes.grid(axis="x")
        axes.set_title(title)
        if marks and any(n is not None for numbers in marks.values() for n in numbers):
            legend_below(axes, 3)

    height = 1.25 + 0.24 * len(labels)
    told = "; ".join(f"{label} {v[0]:.4f}" for label, v in zip(labels, values, strict=True) if v is not None)
    return Panel(draw, f"{title}, {unit}: {told}", height=height)


def grouped_bars(
    title: str,
    unit: str,
    labels: Sequence[str],
    groups: Mapping[str, Sequence[tuple[float, float | None] | None]],
) -> Panel:
    """Lying bars, for every label one a group: mean and standard deviation (or ``None``)."""

    def draw(axes: Any) -> None:
        places = np.arange(len(labels))[::-1]
        height = 0.76 / len(groups)
        for number, (name, values) in enumerate(groups.items()):
            offset = ((len(groups) - 1) / 2 - number) * height
            there = [(p + offset, v) for p, v in zip(places, values, strict=True) if v is not None]
            axes.barh(
                [p for p, _ in there],
                [v[0] for _, v in there],
                height=height * 0.92,
                color=PALETTE[(4, 2, 5, 3)[number % 4]],
                xerr=[v[1] or 0.0 for _, v in there],
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
                label=name,
            )
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        axes.set_title(title)
        legend_below(axes, 2)

    told = "; ".join(
        f"{label}, {name} {v[0]:.4f}" for name, vs in groups.items() for label, v in zip(labels, vs, strict=True) if v
    )
    height = 1.25 + 0.36 * len(labels)
    return Panel(draw, f"{title}, {unit}: {told}", height=height)


@dataclass(frozen=True)
class Line:
    """One curve, with a band between ``low`` and ``high`` where there are several seeds; markers are hollow."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: str = PALETTE[4]
    style: str = "-"
    marker: str = ""
    size: float = 4.0


def lines(
    title: str, x: str, y: str, curves: Sequence[Line], bottom: float | None = None, ticks: Sequence[float] = ()
) -> Panel:
    """Curves over a common axis; ``bottom`` starts the vertical axis, ``ticks`` are the horizontal one's."""

    def draw(axes: Any) -> None:
        for c in curves:
            style = {"color": c.colour, "linewidth": 1.6, "marker": c.marker, "markersize": c.size, "fillstyle": "none"}
            axes.plot(c.x, c.y, c.style, label=c.label, **style)
            if len(c.low):
                axes.fill_between(c.x, c.low, c.high, color=c.colour, alpha=0.18, linewidth=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        axes.grid()
        if bottom is not None:
            axes.margins(y=0.1)
            axes.set_ylim(bottom=bottom)
        if len(ticks):
            axes.set_xticks(list(ticks))
        if len(curves) > 1:
            legend_below(axes, min(3, len(curves)))

    ends = "; ".join(f"{c.label} from {c.y[0]:.4f} to {c.y[-1]:.4f}" for c in curves if len(c.y))
    return Panel(draw, f"{title}, {y} over {x}: {ends}", height=2.9 + 0.2 * math.ceil(len(curves) / 3))


def heat_map(
    title: str, x: str, y: str, columns: Sequence[str], rows: Sequence[str], values: np.ndarray[Any, Any]
) -> Panel:
    """A grid of coloured numbers, ``(len(rows), len(columns))``, NaN where nothing is known."""

    def draw(axes: Any) -> None:
        picture = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
        low, high = np.nanmin(values), np.nanmax(values)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = high == low or (value - low) / (high - low) < 0.55
                axes.text(
                    j, i, f"{value:.4f}", ha="center", va="center", color="white" if dark else "black", fontsize=8
                )
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = axes.figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
        bar.outline.set_visible(False)

    i, j = divmod(int(np.nanargmax(values)), values.shape[1])
    told = f"{title}: highest {values[i, j]:.4f} at {x} {columns[j]}, {y} {rows[i]}"
    return Panel(draw, told, width=4.3, height=3.2)
