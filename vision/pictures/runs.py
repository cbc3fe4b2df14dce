"""Finished runs that are looked at together: opened one after the other, named apart, asked about the same images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recdenoise import seeds
from recdenoise.errors import UserError
from vision.data import ImageData
from vision.experiment import Prepared, load
from vision.networks.double_branch import DoubleBranch
from vision.run import ENDS, Run
from vision.settings import Settings, read_settings

Part = Literal["test", "train"]


@dataclass(frozen=True)
class Opened:
    """A finished run, ready to answer.

    Attributes:
        folder: where it is.
        name: what it is called in pictures.
        settings, prepared, run: as :func:`vision.experiment.load` gives them.
    """

    folder: Path
    name: str
    settings: Settings
    prepared: Prepared
    run: Run


@dataclass(frozen=True)
class Chosen:
    """Some images of a data set.

    Attributes:
        data: the images, on the CPU, with the labels that count as right where they are known.
        rows: ``(n,)`` where they stand in ``part`` of the data set.
        part: ``test`` or ``train``.
    """

    data: ImageData
    rows: Tensor
    part: Part


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """A GPU that runs out of memory in the block becomes a sentence that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError("The GPU has no memory left: ask for fewer --images, or say --device cpu.") from error


def open_runs(
    folders: Sequence[Path], names: Sequence[str] = (), end: str | None = None, device: str | None = None
) -> Iterator[Opened]:
    """Open runs one after the other, so that only one set of images is held at a time.

    Args:
        folders: of finished runs of ``recdenoise vision train``.
        names: one a run; by default method and noise, with the seed or the folder where these are the same.
        end: answer with the weights of ``last`` or ``best_val``; ``None`` takes those that the run kept.
        device: where networks answer; ``None`` takes a GPU where there is one.

    Raises:
        UserError: a folder that is no finished run, names that are not one a run, or an unknown end. All folders are
            looked at before the first one is opened.
    """
    if end is not None and end not in ENDS:
        raise UserError(f"The weights are {end!r}; they must be one of {', '.join(ENDS)}.")
    called = run_names(folders, names)
    for folder, name in zip(folders, called, strict=True):
        settings, prepared, run = load(folder, device)
        if end is not None:
            run.use(end)
        yield Opened(folder, name, settings, prepared, run)


def run_names(folders: Sequence[Path], names: Sequence[str] = ()) -> list[str]:
    """What runs are called in a picture; see :func:`open_runs`."""
    if not folders:
        raise UserError("No run was given: name the folder of a finished run of recdenoise vision train.")
    settings = [read_settings(folder) for folder in folders]
    for folder in folders:
        if not (folder / "model.pt").is_file():
            raise UserError(
                f"The run in {folder} has not finished; continue it with: recdenoise vision train --resume {folder}"
            )
    if names:
        if len(names) != len(folders) or len(set(names)) != len(names):
            raise UserError(f"There are {len(names)} names for {len(folders)} runs; give a different one for each.")
        return list(names)
    plain = [f"{each.method.title}, {each.noise or 'labels as given'}" for each in settings]
    if len(set(plain)) < len(plain):
        plain = [f"{name}, seed {each.seed}" for name, each in zip(plain, settings, strict=True)]
    if len(set(plain)) < len(plain):
        plain = [f"{name} ({folder.name})" for name, folder in zip(plain, folders, strict=True)]
    if len(set(plain)) < len(plain):
        raise UserError("The same run was given twice, or runs that cannot be told apart: give each a --name.")
    return plain


def part_of(opened: Opened, part: Part) -> tuple[ImageData, Tensor]:
    """A part of a run's images in the order of the data set, and its rows; true labels in place of the given ones.

    ``train`` are the images that it learned from and those that chose the epoch.

    Raises:
        UserError: another part, or a data set without test images.
    """
    prepared = opened.prepared
    if part == "test":
        if prepared.test is None:
            raise UserError(f"{opened.settings.dataset} has no test images: ask for the part train.")
        return prepared.test, torch.arange(len(prepared.test))
    if part != "train":
        raise UserError(f"The part is {part!r}; it must be test or train.")
    rows = torch.from_numpy(np.concatenate(prepared.rows))
    order = rows.argsort()
    data = prepared.train
    if prepared.valid is not None:
        data = _joined(data, prepared.valid)
    data = data.subset(order)
    return (data if data.true_labels is None else replace(data, labels=data.true_labels)), rows[order]


def _joined(first: ImageData, second: ImageData) -> ImageData:
    """Two parts of one data set behind each other."""
    if not isinstance(first.images, Tensor) or not isinstance(second.images, Tensor):
        raise UserError(f"{first.name or 'The folder'} is read as it is needed: ask for the part test.")
    true = None
    if first.true_labels is not None and second.true_labels is not None:
        true = torch.cat([first.true_labels, second.true_labels])
    images, labels = (torch.cat([a, b]) for a, b in ((first.images, second.images), (first.labels, second.labels)))
    attributes = {name: torch.cat([values, second.attributes[name]]) for name, values in first.attributes.items()}
    masks = None
    if isinstance(first.masks, Tensor) and isinstance(second.masks, Tensor):
        masks = torch.cat([first.masks, second.masks])
    return replace(first, images=images, labels=labels, true_labels=true, attributes=attributes, masks=masks)


def choose(opened: Opened, part: Part, number: int, rows: Sequence[int] = (), by_class: bool = False) -> Chosen:
    """Images of a part, the same for every run on the same data.

    Args:
        opened: a run.
        part: ``test`` or ``train``.
        number: how many at most.
        rows: take these, by row of the part's data set, in place of ``number`` drawn ones.
        by_class: draw one image of each class after the other, for a picture; otherwise all alike.

    Raises:
        UserError: rows that are not there.
    """
    data, numbers = part_of(opened, part)
    if rows:
        places = {int(row): place for place, row in enumerate(numbers)}
        for row in rows:
            if row not in places:
                raise UserError(
                    f"Row {row} is none of the {part} images of {opened.folder}: their rows are "
                    f"{int(numbers[0])} to {int(numbers[-1])}."
                )
        chosen = torch.tensor([places[row] for row in rows])
    else:
        order = torch.randperm(len(data), generator=seeds.generator("cpu", 0, "pictures", part))
        if by_class:
            order = order[_turns(data.labels.cpu()[order]).argsort(stable=True)]
        chosen = order[:number] if by_class else order[:number].sort().values
    found = data.subset(chosen)
    if not isinstance(found.images, Tensor):  # a few pictures of a folder: read now, so that runs can be compared
        found = replace(found, images=found.images[torch.arange(len(found))])
    return Chosen(found, numbers[chosen], part)


def _turns(labels: Tensor) -> Tensor:
    """``(n,)`` a key whose order takes the classes in turn, each class' images in the order they come in."""
    n_classes = int(labels.max()) + 1
    seen = torch.nn.functional.one_hot(labels, n_classes).cumsum(0)
    return seen.gather(1, labels.unsqueeze(1))[:, 0] * n_classes + labels


def check_same(first: tuple[Path, Chosen], folder: Path, chosen: Chosen) -> None:
    """Refuse runs that would be asked about different images. Raises ``UserError``."""
    before, known = first
    one, other = known.data, chosen.data
    assert isinstance(one.images, Tensor)
    assert isinstance(other.images, Tensor)
    if one.images.shape != other.images.shape or one.n_classes != other.n_classes:
        a, b = (f"{tuple(d.images.shape)} and {d.n_classes} classes" for d in (one, other))
        raise UserError(f"{before} and {folder} are runs of different data: images of shape {a} against {b}.")
    same = torch.equal(known.rows, chosen.rows) and torch.equal(one.labels.cpu(), other.labels.cpu())
    if not (same and torch.equal(one.images.cpu(), other.images.cpu())):
        raise UserError(
            f"{before} and {folder} are runs of different data: their {chosen.part} images differ. Compare runs with "
            "the same dataset, images and clean."
        )


def check_one_image(opened: Opened, picture: str) -> None:
    """Refuse a run whose network takes an image in two parts. Raises ``UserError``."""
    if isinstance(opened.run.watched, DoubleBranch):
        raise UserError(
            f"The network of the run in {opened.folder} has two branches, for content and for context: {picture} is "
            "for networks that look at whole images."
        )


def class_name(data: ImageData, label: int) -> str:
    """A class for people."""
    return str(label) if data.class_names is None else data.class_names[label]
