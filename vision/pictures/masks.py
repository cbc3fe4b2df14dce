"""Foreground and background of images: the fixed box, and the masks that DeNLL's networks find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recdenoise import checkpoint
from recdenoise.errors import UserError
from vision.data import ImageData
from vision.networks.denll import DeNLLNetwork
from vision.pictures.drawing import Cell, write_grid
from vision.pictures.runs import Chosen, Opened, Part, check_same, choose, class_name, enough_memory, open_runs
from vision.run import Run

BLOCK = 256
"""Images that go through a network at once."""


@dataclass(frozen=True)
class Masks:
    """Where one run sees the object.

    Attributes:
        name: of the run in pictures.
        end: whose weights: ``last`` or ``best_val``.
        mask: ``(n, 1, H, W)`` float32 in 0..1, on the CPU.
        foreground, background: ``(n, C, H, W)`` float32 in 0..1: what the two encoders see, as people would.
        predicted: ``(n,)`` int64, the run's answers.
    """

    name: str
    end: str
    mask: Tensor
    foreground: Tensor
    background: Tensor
    predicted: Tensor

    @property
    def centre(self) -> Tensor:
        """``(n, 2)`` row and column of each mask's centre of mass, in pixels."""
        mask = self.mask[:, 0].double()
        mass = mask.sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
        down, across = (torch.arange(side, dtype=torch.float64) for side in mask.shape[1:])
        return torch.stack([mask.sum(2) @ down / mass, mask.sum(1) @ across / mass], dim=1)

    @property
    def share(self) -> Tensor:
        """``(n,)`` mean of each mask: the share of the image that counts as foreground."""
        return self.mask.double().mean((1, 2, 3))


def masked(inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``M x`` and ``(1 - M) x`` of normalised images ``(n, C, H, W)`` and a mask ``(n or 1, 1, H, W)``."""
    return inputs * mask, inputs * (1 - mask)


def network_of(opened: Opened) -> DeNLLNetwork:
    """The network of a run that finds masks. Raises ``UserError`` where it finds none."""
    network = opened.run.watched
    if not isinstance(network, DeNLLNetwork):
        raise UserError(
            f"The run in {opened.folder} has no masks: {opened.settings.method.title} does not tell foreground from "
            "background; method denll does."
        )
    return network


def inputs_of(run: Run, data: ImageData, rows: Tensor) -> Tensor:
    """Normalised images ``(n, C, H, W)`` of some rows, on the device, not augmented."""
    raw = run.task.fetch(data, rows.to(run.task.device))
    return run.task.augmented(raw, torch.Generator(device=run.task.device), train=False)


@enough_memory()
@torch.no_grad()
def masks_of(opened: Opened, data: ImageData) -> Tensor:
    """``(n, 1, H, W)`` float32 masks of a run's network on the CPU. Raises ``UserError`` where it finds none."""
    network = network_of(opened).eval()
    found = []
    for rows in torch.arange(len(data)).split(BLOCK):
        mask = network.mask(inputs_of(opened.run, data, rows)).float()
        found.append(mask.expand(len(rows), *mask.shape[1:]).cpu())
    return torch.cat(found)


@enough_memory()
@torch.no_grad()
def found_masks(opened: Opened, chosen: Chosen) -> Masks:
    """Masks of some images, and the two images that each is cut into. Raises ``UserError`` where there are none."""
    network, run = network_of(opened), opened.run
    run.denoiser.eval()
    data = chosen.data
    inputs = inputs_of(run, data, torch.arange(len(data)))
    mask = network.mask(inputs).float()
    foreground, background = (part.float().cpu() for part in network.cut(inputs, mask))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (run.task.augment.mean, run.task.augment.std))  # type: ignore[attr-defined]
    if network.cut.mode != "eq5":  # those are on the scale 0 to 1 already
        foreground, background = (part * std + mean for part in (foreground, background))
    predicted = run.denoiser.score(inputs).argmax(1).cpu()
    whole = mask.expand(len(data), *mask.shape[1:]).cpu()
    return Masks(opened.name, run.used, whole, foreground.clamp(0, 1), background.clamp(0, 1), predicted)


def write_masks(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] = (),
    end: str | None = None,
    part: Part = "test",
    images: int = 10,
    rows: Sequence[int] = (),
    device: str | None = None,
) -> tuple[list[Masks], list[Path]]:
    """Images with each run's mask outlined, and the foreground and background cut out: ``masks.png``, ``masks.csv``.

    Args:
        folders: of finished runs of method ``denll`` on the same data.
        out: folder to write to.
        names: one a run; see :func:`vision.pictures.runs.open_runs`.
        end: ``last`` or ``best_val``; ``None`` takes the weights that each run kept.
        part: images of ``test`` or of ``train``.
        images: so many of them, the classes in turn, the same for every run.
        rows: these rows of the part in place of drawn ones.
        device: where networks answer.

    Returns:
        A record for every run, and the paths.

    Raises:
        UserError: a run without masks, runs of different data, rows that are not there.
    """
    if images < 1:
        raise UserError(f"The number of images is {images}; it must be 1 or more.")
    records: list[Masks] = []
    first: tuple[Path, Chosen] | None = None
    for opened in open_runs(folders, names, end, device):
        network_of(opened)
        chosen = choose(opened, part, images, rows, by_class=True)
        if first is not None:
            check_same(first, opened.folder, chosen)
        first = first or (opened.folder, chosen)
        records.append(found_masks(opened, chosen))
    assert first is not None
    picture, table = out / "masks.png", out / "masks.csv"
    checkpoint.write_text(table, _csv(records, first[1]))
    _draw(records, first[1], picture)
    return records, [picture, table]


def _draw(records: Sequence[Masks], chosen: Chosen, path: Path) -> None:
    data = chosen.data
    assert isinstance(data.images, Tensor)
    places = range(len(data))
    labels = data.labels.tolist()
    grid = []
    for record in records:
        answers = record.predicted.tolist()
        before = f"{record.name}: " if len(records) > 1 else ""
        overlay = [
            Cell(
                data.images[i],
                outline=record.mask[i, 0],
                below=class_name(data, answers[i]),
                wrong=answers[i] != labels[i],
            )
            for i in places
        ]
        grid += [(f"{before}mask", overlay)]
        grid += [(f"{before}foreground", [Cell(record.foreground[i]) for i in places])]
        grid += [(f"{before}background", [Cell(record.background[i]) for i in places])]
    who = f"{records[0].name}: " if len(records) == 1 else ""
    write_grid(grid, path, f"{who}the line is where the mask is one half; below, the prediction (× wrong)")


def _csv(records: Sequence[Masks], chosen: Chosen) -> str:
    from vision.disagreement_report import as_csv

    rows = []
    for record in records:
        centre, share = record.centre.tolist(), record.share.tolist()
        for place, row in enumerate(chosen.rows.tolist()):
            rows.append(
                {
                    "run": record.name,
                    "weights": record.end,
                    "images_of": chosen.part,
                    "row": row,
                    "label": int(chosen.data.labels[place]),
                    "predicted": int(record.predicted[place]),
                    "centre_row": centre[place][0],
                    "centre_column": centre[place][1],
                    "share": share[place],
                }
            )
    return as_csv(rows)
