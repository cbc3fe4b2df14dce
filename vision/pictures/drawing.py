"""A grid of small pictures with names of rows, words below, and heat or outlines on top."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recdenoise import checkpoint
from recdenoise.reports.charts import FAINT, INK, drawing
from vision.issues import short

WRONG = "#c2291e"


@dataclass(frozen=True)
class Cell:
    """One small picture.

    Attributes:
        image: ``(C, H, W)``: uint8, or floats in 0..1.
        heat: ``(H, W)`` in 0..1, laid over the image in grey; ``None`` shows the image alone.
        outline: ``(H, W)`` whose line at half its height is drawn.
        below: a word under it.
        wrong: mark the word as that of a mistake.
    """

    image: Tensor
    heat: Tensor | None = None
    outline: Tensor | None = None
    below: str = ""
    wrong: bool = False


def pixels(image: Tensor) -> NDArray[Any]:
    """``(H, W)`` grey or ``(H, W, 3)``, in 0..1."""
    values = image.cpu().float()
    if not image.is_floating_point():
        values = values / 255
    array = values.clamp(0, 1).permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array[..., :3]


def heated(image: Tensor, heat: Tensor) -> NDArray[Any]:
    """``(H, W, 3)`` the image in grey, coloured where ``heat`` is high, on a scale that reads without hues."""
    import matplotlib

    shown = pixels(image)
    grey = shown if shown.ndim == 2 else shown @ np.array([0.299, 0.587, 0.114])
    values = heat.cpu().numpy()
    colour = matplotlib.colormaps["inferno"](values)[..., :3]
    strength = (0.25 + 0.5 * values)[..., None]
    return (1 - strength) * np.repeat(grey[..., None], 3, axis=2) + strength * colour


def write_grid(rows: Sequence[tuple[str, Sequence[Cell]]], path: Path, title: str) -> None:
    """A PNG of rows of pictures, each row with a name on its left. Raises ``UserError`` where it cannot be written.

    Args:
        rows: name and cells of each row; all have the same number of cells.
        path: of the PNG.
        title: above them.
    """
    columns = len(rows[0][1])
    with drawing() as plt:
        size = (max(1.0 * columns + 1.5, 4.8), 1.22 * len(rows) + 0.45)
        widths = [1.3, *([1.0] * columns)]
        figure, grid = plt.subplots(
            len(rows), columns + 1, figsize=size, layout="constrained", squeeze=False, width_ratios=widths
        )
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
        for line, (name, cells) in zip(grid, rows, strict=True):
            line[0].set_axis_off()
            wrapped = "\n".join(textwrap.wrap(name, 18, break_on_hyphens=False))
            line[0].text(1.0, 0.5, wrapped, ha="right", va="center", fontsize=8, transform=line[0].transAxes)
            for axes, cell in zip(line[1:], cells, strict=True):
                _draw(axes, cell)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        with checkpoint.atomic_file(path) as file:
            figure.savefig(file, dpi=140, format="png", metadata={"Software": None})


def _draw(axes: Any, cell: Cell) -> None:
    shown = pixels(cell.image) if cell.heat is None else heated(cell.image, cell.heat)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if cell.outline is not None:
        axes.contour(cell.outline.cpu().numpy(), levels=[0.5], colors=["white"], linewidths=2.4)
        axes.contour(cell.outline.cpu().numpy(), levels=[0.5], colors=["black"], linewidths=1.0, linestyles="--")
    axes.set_xticks([])
    axes.set_yticks([])
    words = f"× {short(cell.below)}" if cell.wrong else short(cell.below)
    axes.set_xlabel(words, fontsize=7, color=WRONG if cell.wrong else INK, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(WRONG if cell.wrong else FAINT)
        spine.set_linewidth(1.6 if cell.wrong else 0.8)
