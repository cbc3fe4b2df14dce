"""Does an image's representation stand on what is in front or on the background? (DeNLL, Figure 1a)

Each image is also shown to the network with its background blanked, and with its foreground blanked. The correlation
coefficient between the representation of the whole image and that of a part says how much the part accounts for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recdenoise import checkpoint
from recdenoise.errors import UserError
from recdenoise.reports import charts
from vision.data import ImageData
from vision.networks.localization import box_mask
from vision.pictures.masks import BLOCK, inputs_of, masked, masks_of
from vision.pictures.runs import (
    Chosen,
    Opened,
    Part,
    check_one_image,
    check_same,
    choose,
    enough_memory,
    open_runs,
)
from vision.run import Run

Across = Literal["features", "images"]
PARTS = ("foreground", "background")


@dataclass(frozen=True)
class Correlation:
    """What one run's representation stands on.

    Attributes:
        name: of the run in pictures.
        end: whose weights: ``last`` or ``best_val``.
        n_images, width: that were looked at, and the number D of their features.
        values: part (``foreground``, ``background``) -> way (``features``, ``images``) -> coefficients, float64: one
            an image, ``(n_images,)``, or one a feature, ``(width,)``; NaN where one of the two sides does not vary.
    """

    name: str
    end: str
    n_images: int
    width: int
    values: dict[str, dict[Across, Tensor]]

    def mean(self, part: str, across: Across) -> float:
        """Mean coefficient, over those that there are; NaN where there is none."""
        return self.values[part][across].nanmean().item()


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation coefficient along ``dim`` of two tensors of one shape; NaN where one of them is constant.

    Example:
        >>> pearson(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[2.0, 4.0, 8.0]]), 1)
        tensor([1.], dtype=torch.float64)
    """
    a, b = (each.double() - each.double().mean(dim, keepdim=True) for each in (a, b))
    scale = (a.square().sum(dim) * b.square().sum(dim)).sqrt()
    return torch.where(scale > 0, (a * b).sum(dim) / scale, torch.full_like(scale, torch.nan)).clamp(-1, 1)


@enough_memory()
@torch.no_grad()
def representations(run: Run, data: ImageData, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A network's representations of images, of their foreground and of their background.

    Args:
        run: whose network answers; a representation is what its last Linear reads, or the layer that the run named.
        data: images.
        mask: ``(n, 1, H, W)`` or ``(1, 1, H, W)`` in 0..1, 1 in front; ``None`` takes the centre's box.

    Returns:
        Three ``(n, D)`` on the CPU: of images x, of M x and of (1 - M) x, where x is normalised, so that what is
        blanked has the mean colour of the training images.
    """
    found = []
    run.denoiser.eval()
    for rows in torch.arange(len(data)).split(BLOCK):
        inputs = inputs_of(run, data, rows)
        here = box_mask(inputs) if mask is None else (mask if len(mask) == 1 else mask[rows]).to(inputs.device)
        views = torch.cat([inputs, *masked(inputs, here)])
        embedding = run.task.embed(run.watched, views)[1]
        found.append(torch.stack(embedding.float().cpu().chunk(3)))
    whole, front, back = torch.cat(found, dim=1)
    return whole, front, back


def correlation_of(opened: Opened, chosen: Chosen, mask: Tensor | None = None) -> Correlation:
    """Correlation coefficients of one run on some images; ``mask`` as in :func:`representations`.

    Raises:
        UserError: a network of two branches.
    """
    check_one_image(opened, "this correlation")
    whole, *parts = representations(opened.run, chosen.data, mask)
    values: dict[str, dict[Across, Tensor]] = {
        name: {"features": pearson(whole, part, 1), "images": pearson(whole, part, 0)}
        for name, part in zip(PARTS, parts, strict=True)
    }
    return Correlation(opened.name, opened.run.used, len(whole), whole.shape[1], values)


def write_correlation(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] = (),
    end: str | None = None,
    part: Part = "test",
    images: int = 1000,
    mask: str | Path = "box",
    across: Across = "features",
    device: str | None = None,
) -> tuple[list[Correlation], list[Path]]:
    """Bars of the mean correlation with foreground and background: ``correlation.png`` and ``correlation.csv``.

    Args:
        folders: of finished runs on the same data.
        out: folder to write to.
        names: one a run; see :func:`vision.pictures.runs.open_runs`.
        end: ``last`` or ``best_val``; ``None`` takes the weights that each run kept.
        part: images of ``test`` or of ``train``.
        images: so many of them, drawn at random, the same for every run.
        mask: ``box`` (the middle three quarters of height and width), ``own`` (each run's own masks), or the folder of
            a run with masks, which all runs then get.
        across: the coefficient of each image over its features, or of each feature over the images. The table has both.
        device: where networks answer.

    Returns:
        A record for every run, and the paths.

    Raises:
        UserError: runs of different data, a run without masks where they are asked for, too few images.
    """
    if across not in ("features", "images"):
        raise UserError(f"The correlation is taken across {across!r}; it must be features or images.")
    if images < 2:
        raise UserError(f"The number of images is {images}; it must be 2 or more.")
    records: list[Correlation] = []
    first: tuple[Path, Chosen] | None = None
    given: Tensor | None = None
    if mask not in ("box", "own"):
        owner = next(open_runs([Path(mask)], end=end, device=device))
        first = (owner.folder, choose(owner, part, images))
        given = masks_of(owner, first[1].data)
    for opened in open_runs(folders, names, end, device):
        chosen = choose(opened, part, images)
        if first is not None:
            check_same(first, opened.folder, chosen)
        first = first or (opened.folder, chosen)
        here = masks_of(opened, chosen.data) if mask == "own" else given
        records.append(correlation_of(opened, chosen, here))
    picture, table = out / "correlation.png", out / "correlation.csv"
    checkpoint.write_text(table, _csv(records, str(mask), part))
    charts.write_png([panel(records, across, f"{records[0].n_images} {part} images")], picture)
    return records, [picture, table]


def panel(records: Sequence[Correlation], across: Across, images: str) -> charts.Panel:
    """Two lying bars for every run, the first run on top; ``images`` says what was looked at."""
    means = {part: [record.mean(part, across) for record in records] for part in PARTS}
    names = ["\n".join(textwrap.wrap(record.name, 26)) for record in records]
    way = "of each image's features" if across == "features" else "of each feature over images"

    def draw(axes: Any) -> None:
        places = np.arange(len(records))[::-1]
        for number, (part, hatch) in enumerate(zip(PARTS, ("", "////"), strict=True)):
            colour = charts.PALETTE[(4, 2)[number]]
            where = places + (0.2, -0.2)[number]
            style = {"facecolor": "none", "edgecolor": colour} if hatch else {"color": colour}
            axes.barh(where, np.nan_to_num(means[part]), height=0.36, label=part, hatch=hatch, **style)
            for spot, value in zip(where, means[part], strict=True):
                text = "not defined" if np.isnan(value) else f"{value:.2f}"
                axes.text(max(np.nan_to_num(value), 0.0), spot, f" {text}", va="center", fontsize=8)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        lowest = np.nanmin([0.0, *means["foreground"], *means["background"]])
        axes.set_xlim(lowest - 0.05 if lowest < 0 else 0.0, 1.12)
        axes.set_xlabel("mean correlation with the whole image")
        axes.grid(axis="x")
        axes.set_title(f"What representations stand on: correlation\n{way}, {images}")
        charts.legend_below(axes, 2)

    told = "; ".join(f"{r.name} {r.mean(PARTS[0], across):.4f}, {r.mean(PARTS[1], across):.4f}" for r in records)
    return charts.Panel(draw, f"Correlation with foreground and background: {told}", 5.2, 1.6 + 0.55 * len(records))


def _csv(records: Sequence[Correlation], mask: str, part: str) -> str:
    from vision.disagreement_report import as_csv

    rows = []
    for record in records:
        for name, ways in record.values.items():
            for across, values in ways.items():
                there = values[~values.isnan()]
                rows.append(
                    {
                        "run": record.name,
                        "weights": record.end,
                        "mask": mask,
                        "images_of": part,
                        "images": record.n_images,
                        "features": record.width,
                        "part": name,
                        "across": across,
                        "mean": record.mean(name, across),
                        "deviation": there.std(correction=0).item() if len(there) else float("nan"),
                        "coefficients": len(there),
                    }
                )
    return as_csv(rows)
