"""What in an image speaks for a class: Grad-CAM, several runs below each other (DeNLL, Figure 1b).

Reference: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV
2017.
Captum computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recdenoise import checkpoint
from recdenoise.errors import UserError, unknown_name
from vision.networks.denll import DeNLLNetwork
from vision.networks.localization import box_mask
from vision.pictures.drawing import Cell, write_grid
from vision.pictures.masks import inputs_of
from vision.pictures.runs import (
    Chosen,
    Opened,
    Part,
    check_one_image,
    check_same,
    choose,
    class_name,
    enough_memory,
    open_runs,
)
from vision.run import Run

Target = Literal["label", "predicted"]


@dataclass(frozen=True)
class Cams:
    """What one run looks at.

    Attributes:
        name: of the run in pictures.
        end: whose weights: ``last`` or ``best_val``.
        layer: dotted name of the layer, in the run's network.
        maps: ``(n, H, W)`` float32 in 0..1: each map divided by its maximum; all 0 where nothing speaks for the class.
        target, predicted: ``(n,)`` int64 the class that is asked about, and the run's answer.
        probability: ``(n,)`` of the class that is asked about.
    """

    name: str
    end: str
    layer: str
    maps: Tensor
    target: Tensor
    predicted: Tensor
    probability: Tensor

    @property
    def inside(self) -> Tensor:
        """``(n,)`` share of each map's mass within the box of the middle; NaN for a map of zeros."""
        mass = self.maps.sum((1, 2))
        box = box_mask(self.maps.unsqueeze(1))[0]
        return torch.where(mass > 0, (self.maps * box).sum((1, 2)) / mass, torch.nan)


def last_map(network: nn.Module, forward: Callable[[Tensor], Any], inputs: Tensor) -> str:
    """Dotted name of the part of ``network`` that finishes last with a map: ``(n, C, h, w)`` of more than one place.

    Raises:
        UserError: there is none, as in a network of Linears.
    """
    found: list[str] = []
    handles = []
    for name, module in network.named_modules():

        def note(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        if name:
            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UserError(
            f"{type(network).__name__} has no layer whose output is a map, so that Grad-CAM has nowhere to look: it "
            "needs a network with convolutions."
        )
    return found[-1]


def grad_cam(forward: Callable[[Tensor], Tensor], layer: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM of each image's logit of ``target``.

    Args:
        forward: from inputs to logits ``(n, C)``.
        layer: whose output is weighted by its mean gradients.
        inputs: ``(n, C, H, W)``, normalised.
        target: ``(n,)`` int64 classes.

    Returns:
        ``(n, H, W)`` float32 on the CPU, scaled up bilinearly, each divided by its maximum; 0 where all are.

    Raises:
        UserError: the layer gives no map, or not one an image.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    maps = LayerGradCam(forward, layer).attribute(inputs, target=target, relu_attributions=True)
    if isinstance(maps, Tensor) and maps.ndim == 4 and len(maps) == 2 * len(inputs):
        maps = maps[: len(inputs)]  # one encoder took foregrounds, then backgrounds
    if not isinstance(maps, Tensor) or maps.ndim != 4 or len(maps) != len(inputs):
        raise UserError("The layer gives no map for each image; name one whose output is (n, C, h, w).")
    maps = LayerAttribution.interpolate(maps.detach().float(), tuple(inputs.shape[2:]), "bilinear")[:, 0].cpu()
    most = maps.amax((1, 2), keepdim=True)
    return torch.where(most > 0, maps / most.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


def looked_at(run: Run, inputs: Tensor) -> str:
    """The last layer with a map; that of the encoder of foregrounds where a network has one. See :func:`last_map`."""
    network = run.watched
    if isinstance(network, DeNLLNetwork):
        return f"encoder.{last_map(network.encoder, run.denoiser.score, inputs)}"
    return last_map(network, run.denoiser.score, inputs)


@enough_memory()
def cams_of(opened: Opened, chosen: Chosen, target: Target = "label", layer: str | None = None) -> Cams:
    """Grad-CAM of one run on some images.

    Args:
        opened: the run.
        chosen: the images.
        target: ask about the class of the ``label``, or the ``predicted`` one.
        layer: dotted name in the run's network; ``None`` takes that of :func:`looked_at`.

    Raises:
        UserError: a layer that is not there or gives no map, or a network of two branches.
    """
    check_one_image(opened, "Grad-CAM")
    run, task = opened.run, opened.run.task
    run.denoiser.eval()
    inputs = inputs_of(run, chosen.data, torch.arange(len(chosen.data)))
    if layer is None:
        layer = looked_at(run, inputs[:2])
    elif layer not in (names := [name for name, _ in run.watched.named_modules() if name]):
        raise unknown_name(f"layer of {opened.settings.network}:", layer, names)
    with torch.no_grad():
        probability = torch.softmax(run.denoiser.score(inputs).float(), dim=1).cpu()
    predicted = probability.argmax(1)
    asked = predicted if target == "predicted" else chosen.data.labels.cpu()
    maps = grad_cam(run.denoiser.score, run.watched.get_submodule(layer), inputs, asked.to(task.device))
    chance = probability.gather(1, asked.unsqueeze(1))[:, 0]
    return Cams(opened.name, run.used, layer, maps, asked, predicted, chance)


def write_cam(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] = (),
    end: str | None = None,
    part: Part = "test",
    images: int = 10,
    rows: Sequence[int] = (),
    target: Target = "label",
    layer: str | None = None,
    device: str | None = None,
) -> tuple[list[Cams], list[Path]]:
    """A row of Grad-CAM pictures for every run, the images below: ``cam.png`` and ``cam.csv``.

    Args:
        folders: of finished runs on the same data.
        out: folder to write to.
        names: one a run; see :func:`vision.pictures.runs.open_runs`.
        end: ``last`` or ``best_val``; ``None`` takes the weights that each run kept.
        part: images of ``test`` or of ``train``.
        images: so many of them, the classes in turn, the same for every run.
        rows: these rows of the part in place of drawn ones.
        target: what is asked about: the class of the ``label``, or the one that each run ``predicted``.
        layer: dotted name in every run's network; ``None`` takes the last one with a map.
        device: where networks answer.

    Returns:
        A record for every run, and the paths.

    Raises:
        UserError: runs of different data, rows that are not there, a network without maps.
    """
    if target not in ("label", "predicted"):
        raise UserError(f"The target is {target!r}; it must be label or predicted.")
    if images < 1:
        raise UserError(f"The number of images is {images}; it must be 1 or more.")
    records: list[Cams] = []
    first: tuple[Path, Chosen] | None = None
    for opened in open_runs(folders, names, end, device):
        chosen = choose(opened, part, images, rows, by_class=True)
        if first is not None:
            check_same(first, opened.folder, chosen)
        first = first or (opened.folder, chosen)
        records.append(cams_of(opened, chosen, target, layer))
    assert first is not None
    picture, table = out / "cam.png", out / "cam.csv"
    checkpoint.write_text(table, _csv(records, first[1]))
    _draw(records, first[1], target, picture)
    return records, [picture, table]


def _draw(records: Sequence[Cams], chosen: Chosen, target: Target, path: Path) -> None:
    data = chosen.data
    assert isinstance(data.images, Tensor)
    labels = data.labels.tolist()
    grid: list[tuple[str, list[Cell]]] = []
    for record in records:
        cells = []
        for place, label in enumerate(labels):
            answer = int(record.predicted[place])
            cells.append(
                Cell(
                    data.images[place],
                    heat=record.maps[place],
                    below=class_name(data, answer),
                    wrong=answer != label,
                )
            )
        grid.append((record.name, cells))
    originals = [Cell(data.images[i], below=class_name(data, label)) for i, label in enumerate(labels)]
    grid.append(("image and label", originals))
    asked = "the label" if target == "label" else "the predicted class"
    write_grid(grid, path, f"Grad-CAM: what speaks for {asked}; below each, the prediction (× wrong)")


def _csv(records: Sequence[Cams], chosen: Chosen) -> str:
    from vision.disagreement_report import as_csv

    rows = []
    for record in records:
        inside = record.inside.tolist()
        for place, row in enumerate(chosen.rows.tolist()):
            rows.append(
                {
                    "run": record.name,
                    "weights": record.end,
                    "layer": record.layer,
                    "images_of": chosen.part,
                    "row": row,
                    "label": int(chosen.data.labels[place]),
                    "predicted": int(record.predicted[place]),
                    "asked": int(record.target[place]),
                    "probability": float(record.probability[place]),
                    "share_inside_box": inside[place],
                }
            )
    return as_csv(rows)
