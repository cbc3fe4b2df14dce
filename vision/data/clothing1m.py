"""Clothing1M: a million images with labels from the web, and some that people labelled, in its publisher's layout.

``<folder>/images/0/00/*.jpg``, and beside ``images`` or in ``annotations`` two kinds of lists: ``*_key_list.txt``, one
image a line (``images/0/00/1,2.jpg``), and ``*_label_kv.txt``, image and class number a line. Images are read from disk
as they are needed, where they do not fit into memory.

Reference: Xiao et al., Learning from Massive Noisy Labeled Data for Image Classification, CVPR 2015.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from recdenoise.errors import UserError, unknown_name
from vision.data.folders import DEFAULT_MEMORY, FolderImages, from_paths, side_lengths
from vision.data.images import ImageData

PARTS = {
    "train": ("noisy_train_key_list.txt", "noisy_label_kv.txt"),
    "test": ("clean_test_key_list.txt", "clean_label_kv.txt"),
    "valid": ("clean_val_key_list.txt", "clean_label_kv.txt"),
    "clean_train": ("clean_train_key_list.txt", "clean_label_kv.txt"),
}
"""Part -> its list of images and its list of labels. ``train`` alone has labels from the web."""

CLASSES = (
    "T-Shirt",
    "Shirt",
    "Knitwear",
    "Chiffon",
    "Sweater",
    "Hoodie",
    "Windbreaker",
    "Jacket",
    "Downcoat",
    "Suit",
    "Shawl",
    "Dress",
    "Vest",
    "Underwear",
)
"""Names by class number, for folders without ``category_names_eng.txt``."""

SIZE = 224
"""Side that images are brought to where no other is given."""


def lists_folder(folder: Path) -> Path | None:
    """Where the lists are, or ``None`` for a folder of another layout."""
    for each in (folder, folder / "annotations"):
        if (each / PARTS["train"][0]).is_file():
            return each
    return None


def load_clothing1m(
    folder: Path,
    split: str = "train",
    *,
    image_size: int | tuple[int, int] | None = None,
    skip_unreadable: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = 0,
    masks: Path | None = None,
) -> ImageData:
    """Images of one of :data:`PARTS`, in the order of its list; see :func:`vision.data.load` for the options.

    Raises:
        UserError: another part, a list that is missing or broken, or images that cannot be read.
    """
    if split not in PARTS:
        raise unknown_name("part of Clothing1M", split, PARTS)
    if masks is not None:
        raise UserError("Clothing1M has no layout for masks: give them for a folder of images by class.")
    lists = lists_folder(folder)
    if lists is None:
        raise UserError(f"{folder} has no {PARTS['train'][0]}: it is not laid out as Clothing1M.")
    keys_file, labels_file = (lists / name for name in PARTS[split])
    names = _class_names(lists)
    known = _labels(labels_file, len(names))
    keys = [key for _, key in _lines(keys_file)]
    for key in keys:
        if key not in known:
            raise UserError(f"{labels_file} has no label of {key}, which {keys_file.name} lists.")
    if not keys:
        raise UserError(f"{keys_file} lists no images.")
    labels = torch.tensor([known[key] for key in keys])
    paths = tuple(folder / key for key in keys)
    height, width = side_lengths(image_size) or (SIZE, SIZE)
    if len(paths) * 3 * height * width <= memory or skip_unreadable:
        return from_paths(
            paths,
            labels,
            names,
            image_size=(height, width),
            skip_unreadable=skip_unreadable,
            memory=memory,
            workers=workers,
            name="clothing1m",
        )
    # Not even the heads of a million files are looked at: what is broken is named when its batch is read.
    return ImageData(FolderImages(paths, 3, (height, width), workers), labels, len(names), names, None, "clothing1m")


def _lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers from 1 and stripped lines that are not empty. Raises ``UserError``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8.") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _labels(path: Path, n_classes: int) -> dict[str, int]:
    """Image -> class. Raises ``UserError`` for a line that says neither."""
    found: dict[str, int] = {}
    for number, line in _lines(path):
        key, _, label = line.rpartition(" ")
        if not label.isascii() or not label.isdigit() or int(label) >= n_classes or not key:
            raise UserError(f"{path}, line {number}: {line!r} is not an image and a class of 0 to {n_classes - 1}.")
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise UserError(f"{path}, line {number}: {key} lies outside the folder.")
        found[key] = int(label)
    return found


def _class_names(lists: Path) -> tuple[str, ...]:
    """Those of ``category_names_eng.txt``, where there is one."""
    path = lists / "category_names_eng.txt"
    if not path.is_file():
        return CLASSES
    names = tuple(line for _, line in _lines(path))
    if len(names) < 2:
        raise UserError(f"{path} names {len(names)} classes; it must name two or more.")
    return names
