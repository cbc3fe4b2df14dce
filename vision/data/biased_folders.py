"""Folders of images with a bias, in the layouts that their publishers use: bFFHQ and its like, and BAR.

``<root>/0.5pct/align/CLASS/ID_CLASS_BIAS.png`` and ``.../conflict/...`` (or ``<root>/train/align/...``), with
``<root>/valid/*`` and ``<root>/test/*``: bFFHQ, and the folders of DFA's other sets (Lee et al., 2021); class and bias
of an image are in its file's name. ``<root>/train/CLASS_NUMBER.jpg`` and ``<root>/test/CLASS_NUMBER.jpg``: BAR (Nam et
al., 2020), whose bias nobody noted; its whole test part conflicts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from recdenoise.errors import UserError
from vision.data.folders import EXTENSIONS, from_paths
from vision.data.images import ImageData
from vision.data.masks import mask_files

NAMES = {
    "bffhq": "bFFHQ (https://github.com/kakaoenterprise/Learning-Debiased-Disentangled)",
    "bar": "BAR (https://github.com/alinlab/BAR)",
}
"""Known by name where their folder lies among the data sets: name -> who publishes it."""
BFFHQ_CLASSES = ("young", "old")
"""By age; the bias is the gender, 0 of women and 1 of men: aligned are young women and old men."""
BAR_SIZE = 224
"""Side that BAR's photographs are brought to unless another is given: they differ in size."""
_NUMBERED = re.compile(r"_(\d{1,6})_(\d{1,6})$")
_NAMED = re.compile(r"^(?P<kind>.*\D)_?\d+$")


def layout(folder: Path) -> str | None:
    """``align`` for bFFHQ's layout, ``flat`` for BAR's, ``None`` for any other."""
    if _aligned_folder(folder) is not None:
        return "align"
    train = folder / "train"
    if train.is_dir() and not any(each.is_dir() for each in train.iterdir()) and _images(train):
        return "flat"
    return None


def load_biased_folder(folder: Path, split: str, **options: Any) -> ImageData:
    """A part of such a folder; see :func:`layout` and :func:`vision.data.load` for the options.

    Raises:
        UserError: a part that is not there, a file whose name tells no class, or what :func:`from_paths` refuses.
    """
    if layout(folder) == "align":
        return _align(folder, split, options)
    return _flat(folder, split, options)


def _images(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.suffix.lower() in EXTENSIONS and each.is_file())


def _aligned_folder(folder: Path) -> Path | None:
    """The folder with ``align`` and ``conflict``: ``0.5pct``, as in the paper, or the first there is."""
    inner = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    found = [each for each in [folder / "0.5pct", *inner] if (each / "align").is_dir() and (each / "conflict").is_dir()]
    return found[0] if found else None


def _part(folder: Path, split: str) -> list[Path]:
    if not (folder / split).is_dir():
        raise UserError(f"{folder} has no folder {split}.")
    found = _images(folder / split)
    if not found:
        raise UserError(f"{folder / split} holds no image.")
    return found


def _align(folder: Path, split: str, options: dict[str, Any]) -> ImageData:
    base = _aligned_folder(folder)
    assert base is not None
    train = _numbers(_images(base / "align") + _images(base / "conflict"))
    paths, labels, bias = train if split == "train" else _numbers(_part(folder, split))
    known = int(train[1].max()) + 1
    names = (
        BFFHQ_CLASSES if known == 2 and folder.name.lower() == "bffhq" else tuple(str(each) for each in range(known))
    )
    if int(labels.max()) >= known:
        raise UserError(f"{folder / split} has the class {int(labels.max())}, which is none of {base}.")
    return from_paths(
        paths, labels, names, attributes={"bias": bias}, name=folder.name, **_masked(folder, paths, options)
    )


def _numbers(paths: list[Path]) -> tuple[list[Path], torch.Tensor, torch.Tensor]:
    """Class and bias of files called ``ID_CLASS_BIAS``."""
    found = [_NUMBERED.search(path.stem) for path in paths]
    wrong = next((path for path, match in zip(paths, found, strict=True) if match is None), None)
    if wrong is not None:
        raise UserError(f"{wrong} is not called ID_CLASS_BIAS, such as 123_0_1.png: its class and bias are unknown.")
    pairs = torch.tensor([[int(match[1]), int(match[2])] for match in found if match is not None]).view(-1, 2)
    return paths, pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def _flat(folder: Path, split: str, options: dict[str, Any]) -> ImageData:
    train = [_kind(path) for path in _part(folder, "train")]
    kinds = sorted(set(train))
    if len(kinds) < 2:
        raise UserError(f"The files in {folder / 'train'} are all called {kinds[0]}...; two classes are needed.")
    paths = _part(folder, split)
    found = train if split == "train" else [_kind(path) for path in paths]
    strange = sorted(set(found) - set(kinds))
    if strange:
        raise UserError(f"{folder / split} has a class {strange[0]!r} that is none of the training part.")
    options = {**options, "image_size": options.get("image_size") or BAR_SIZE}
    number = {kind: place for place, kind in enumerate(kinds)}
    labels = torch.tensor([number[kind] for kind in found])
    return from_paths(paths, labels, tuple(kinds), name=folder.name, **_masked(folder, paths, options))


def _masked(folder: Path, paths: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    """The options with a mask's file for each image, where masks are wanted."""
    masks = options.get("masks")
    return options if masks is None else {**options, "masks": mask_files(masks, folder, "", paths)}


def _kind(path: Path) -> str:
    match = _NAMED.match(path.stem)
    if match is None:
        raise UserError(f"{path} is not called CLASS_NUMBER, such as climbing_12.jpg: its class is unknown.")
    return match["kind"].rstrip("_")
