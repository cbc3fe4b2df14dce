"""A picture of data sets: a row for each class, a column for each example, data set or value of an attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdenoise import checkpoint
from recdenoise.errors import UserError, unknown_name
from recdenoise.noise import uniform_draws
from vision.data import ImageData

GAP = 3
"""White pixels between two images."""
MOST_ROWS = 40
"""Classes on a picture; of more, as many are drawn, equally far apart."""


@dataclass(frozen=True)
class Sheet:
    """What to draw.

    Attributes:
        cells: ``rows[columns]`` of ``(C, H, W)`` uint8 images; ``None`` leaves a cell empty.
        row_names, column_names: beside and above.
    """

    cells: Sequence[Sequence[Tensor | None]]
    row_names: Sequence[str]
    column_names: Sequence[str]


def examples(data: ImageData, columns: int, seed: int) -> Sheet:
    """Random images of each class; where their bias is known, conflicting ones as often as aligned ones.

    Raises:
        UserError: ``columns`` is below 1.
    """
    if columns < 1:
        raise UserError(f"The number of columns is {columns}; it must be 1 or more.")
    order = _shuffled(len(data), seed)
    labels = data.labels.cpu()[order]
    bias = data.attributes.get("bias")
    conflicts = None if bias is None else (bias.cpu()[order] != labels)
    cells = []
    for label in _classes(data.n_classes):
        rows = order[labels == label]
        if conflicts is not None:
            apart = conflicts[labels == label]
            same, other = rows[~apart], rows[apart]
            half = max(min(columns // 2, len(other)), columns - len(same))
            rows = torch.cat([same[: columns - half], other[:half]])
        images = [data.images[row : row + 1][0].cpu() for row in rows[:columns].tolist()]
        cells.append([*images, *[None] * (columns - len(images))])
    return Sheet(cells, _names(data), [""] * columns)


def by_attribute(data: ImageData, name: str, seed: int) -> Sheet:
    """One image of each class with each value of an attribute, where there is one.

    Raises:
        UserError: the images have no such attribute.
    """
    if name not in data.attributes:
        raise unknown_name(f"attribute of {data.name or 'these images'}", name, data.attributes)
    order = _shuffled(len(data), seed)
    labels, values = data.labels.cpu()[order], data.attributes[name].cpu()[order]
    columns = values.unique().tolist()[:MOST_ROWS]
    cells: list[list[Tensor | None]] = []
    for label in _classes(data.n_classes):
        found = [order[(labels == label) & (values == value)][:1].tolist() for value in columns]
        cells.append([data.images[rows[0] : rows[0] + 1][0].cpu() if rows else None for rows in found])
    return Sheet(cells, _names(data), [f"{name} {value}" for value in columns])


def side_by_side(sets: Sequence[ImageData], titles: Sequence[str], seed: int) -> Sheet:
    """The same row of several data sets of one base, one for each class: Figure 6(a) of CIT with its four versions.

    Raises:
        UserError: sets with other classes or other numbers of images.
    """
    first = sets[0]
    for data, title in zip(sets, titles, strict=True):
        if (data.n_classes, len(data)) != (first.n_classes, len(first)):
            raise UserError(
                f"{title} has {len(data)} images of {data.n_classes} classes and {titles[0]} {len(first)} of "
                f"{first.n_classes}: beside each other they must be of one base."
            )
    order = _shuffled(len(first), seed)
    labels = first.labels.cpu()[order]
    cells: list[list[Tensor | None]] = []
    for label in _classes(first.n_classes):
        row = order[labels == label][:1].tolist()
        cells.append([data.images[row[0] : row[0] + 1][0].cpu() if row else None for data in sets])
    return Sheet(cells, _names(first), titles)


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.from_numpy(np.argsort(uniform_draws(seed, "sheet")(n), kind="stable"))


def _classes(n_classes: int) -> list[int]:
    if n_classes <= MOST_ROWS:
        return list(range(n_classes))
    return np.linspace(0, n_classes - 1, MOST_ROWS).round().astype(int).tolist()


def _names(data: ImageData) -> list[str]:
    names = data.class_names or [str(number) for number in range(data.n_classes)]
    return [names[number] for number in _classes(data.n_classes)]


def canvas(sheet: Sheet) -> NDArray[np.uint8]:
    """The images of a sheet in one: ``(height, width, 3)`` pixels, white between them."""
    shapes = [image.shape[1:] for row in sheet.cells for image in row if image is not None]
    height, width = (max(shape[axis] for shape in shapes) + GAP for axis in (0, 1))
    rows, columns = len(sheet.cells), len(sheet.column_names)
    out = np.full((rows * height + GAP, columns * width + GAP, 3), 255, dtype=np.uint8)
    for i, row in enumerate(sheet.cells):
        for j, image in enumerate(row):
            if image is None:
                continue
            pixels = image[: 1 if len(image) < 3 else 3].expand(3, -1, -1).permute(1, 2, 0).numpy()
            top, left = GAP + i * height, GAP + j * width
            out[top : top + image.shape[1], left : left + image.shape[2]] = pixels
    return out


def draw(sheet: Sheet, path: Path, title: str) -> None:
    """Write a sheet as PNG. Raises ``UserError`` where it cannot be written."""
    from recdenoise.reports.charts import drawing

    pixels = canvas(sheet)
    rows, columns = len(sheet.cells), len(sheet.column_names)
    height, width = pixels.shape[0] / rows, pixels.shape[1] / columns
    cell = 0.62  # inches of a row
    with drawing() as plt:
        size = (cell * columns * width / height + 1.5, cell * rows + 0.7)
        figure, axes = plt.subplots(figsize=(max(size[0], 4.0), size[1]), layout="constrained")
        axes.imshow(pixels, interpolation="nearest")
        axes.set_yticks([(i + 0.5) * height for i in range(rows)], sheet.row_names, fontsize=8)
        long = max(len(name) for name in sheet.column_names) > 8
        turned = {"rotation": 30, "ha": "left"} if long else {}
        axes.set_xticks([(j + 0.5) * width for j in range(columns)], sheet.column_names, fontsize=8, **turned)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        with checkpoint.atomic_file(path) as file:
            figure.savefig(file, dpi=160, format="png", metadata={"Software": None})
