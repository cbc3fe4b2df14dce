"""Data sets by name: from plain arrays, from packed or raw files at hand, or downloaded through torchvision."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_recipes import RecipeError
from data_recipes.images import IMAGE_RECIPES, ImageRecipe, build_images, built_file, source_folder
from data_recipes.images_files import arrays
from recdenoise.errors import UserError, unknown_name
from vision.data import biased_folders, derived
from vision.data.arrays import as_images, as_labels
from vision.data.images import ImageData

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def names() -> list[str]:
    """Every name that :func:`load_named` takes: sets of images, and ``<labels>-<set>`` for human labels."""
    plain = [name for name, recipe in IMAGE_RECIPES.items() if not recipe.label_sets] + list(biased_folders.NAMES)
    human = [f"{name}-{each}" for name, recipe in IMAGE_RECIPES.items() for each in recipe.label_sets]
    return plain + human


def canonical(name: str) -> str | None:
    """The proper form of a name typed in another case, with underscores or as ``CIFAR-10``; ``None`` if unknown.

    A name that makes a set from a named one is known, too. Raises ``UserError`` where only its value is wrong.
    """
    made = derived.parse(name)
    if made is not None:
        base = canonical(made.base)
        return None if base is None else dataclasses.replace(made, base=base).name
    text = name.lower().replace("_", "-").replace("cifar-", "cifar").replace("fashionmnist", "fashion-mnist")
    return text if text in names() or text in IMAGE_RECIPES else None


def data_folder() -> Path | None:
    """``RECDENOISE_DATA/vision``: files that are at hand; ``None`` where the variable is not set."""
    root = os.environ.get("RECDENOISE_DATA")
    return Path(root) / "vision" if root else None


def cache_folder() -> Path:
    """Where arrays are built and downloads go: ``vision`` in ``RECDENOISE_CACHE``, else in ``~/.cache/recdenoise``."""
    return Path(os.environ.get("RECDENOISE_CACHE") or Path.home() / ".cache" / "recdenoise") / "vision"


def load_named(name: str, split: str = "train", root: str | Path | None = None, download: bool = True) -> ImageData:
    """A data set by its name.

    Args:
        name: see :func:`names`; ``cifar10n-worse`` is CIFAR-10 with that set of human labels, true labels kept.
        split: ``train`` or ``test``.
        root: the one folder to look in, build in and download to. ``None``: ``RECDENOISE_DATA/vision``, then the cache.
        download: fetch what is on no disk, with a progress bar.

    Raises:
        UserError: unknown name or split, or files that are absent or damaged.
    """
    known = canonical(name)
    if known is None:
        raise unknown_name("data set", name, names())
    if split not in ("train", "test"):
        raise UserError(f"The split is {split!r}; it must be train or test.")
    if known in IMAGE_RECIPES and IMAGE_RECIPES[known].label_sets:
        sets = ", ".join(f"{known}-{each}" for each in IMAGE_RECIPES[known].label_sets)
        raise UserError(f"{known} has {len(IMAGE_RECIPES[known].label_sets)} sets of labels; say which: {sets}.")
    base, _, human = known.partition("-") if known not in IMAGE_RECIPES else (known, "", "")
    recipe = IMAGE_RECIPES[base]
    if not human:
        return _images(recipe, split, root, download)
    data = _images(IMAGE_RECIPES[recipe.images_of or ""], split, root, download)
    if split == "test":  # people labelled the training images
        return data
    clean, noisy = human_labels(base, human, root)
    if not torch.equal(clean, data.labels):
        raise UserError(f"The labels of {base} are not in the order of the images of {data.name}: rebuild both.")
    return dataclasses.replace(data, labels=noisy, true_labels=clean, name=known)


def folder_of(name: str, root: str | Path | None = None) -> Path:
    """The folder of a set of :data:`vision.data.biased_folders.NAMES`. Raises ``UserError`` where there is none."""
    for folder in _roots(root):
        for each in (name, name.upper(), "bFFHQ"):
            if each.lower() == name and (folder / each).is_dir():
                return folder / each
    raise UserError(
        f"There is no folder {name} in any of: {_places(root)}. Its publisher has the images: "
        f"{biased_folders.NAMES[name]}."
    )


def human_labels(name: str, which: str, root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Clean and human labels of CIFAR-N's training images, ``(50000,)`` int64 each, in the order of the images.

    Args:
        name: ``cifar10n`` or ``cifar100n``.
        which: the set: ``aggre``, ``random1``, ``random2``, ``random3`` or ``worse``; ``fine`` for ``cifar100n``.
        root: see :func:`load_named`.

    Raises:
        UserError: unknown names, or no file.
    """
    recipe = IMAGE_RECIPES.get(name)
    if recipe is None or not recipe.label_sets:
        raise unknown_name("set of human labels", name, [n for n, r in IMAGE_RECIPES.items() if r.label_sets])
    if which not in recipe.label_sets:
        raise unknown_name(f"set of labels of {name}:", which, recipe.label_sets)
    path = _built(recipe, "train", root)
    if path is None:
        raise UserError(
            f"The labels of {recipe.title} are in none of: {_places(root)}. {recipe.url} publishes "
            f"{recipe.files[0].name}; give it as noise human:PATH#{recipe.label_sets[which]}."
        )
    found = _arrays(path)
    return as_labels(found["clean_label"]), as_labels(found[recipe.label_sets[which]])


def _images(recipe: ImageRecipe, split: str, root: str | Path | None, download: bool) -> ImageData:
    path = _built(recipe, split, root)
    if path is None:
        if not download:
            raise UserError(
                f"{recipe.title} is in none of: {_places(root)}. Allow the download, or put {split}.npz (images, "
                f"labels) into {recipe.name} of one of them."
            )
        images, labels = _download(recipe, split, Path(root) if root else cache_folder())
    else:
        found = _arrays(path)
        if not {"images", "labels"} <= found.keys():
            raise UserError(f"{path} needs the arrays images and labels; it has {', '.join(sorted(found)) or 'none'}.")
        images, labels = found["images"], found["labels"]
    pixels, notes = as_images(images)
    return ImageData(pixels, as_labels(labels), recipe.n_classes, recipe.class_names, None, recipe.name, notes)


def _roots(root: str | Path | None) -> list[Path]:
    if root is not None:
        return [Path(root)]
    return [each for each in (data_folder(), cache_folder()) if each is not None]


def _places(root: str | Path | None) -> str:
    return ", ".join(str(each) for each in _roots(root))


def _built(recipe: ImageRecipe, split: str, root: str | Path | None) -> Path | None:
    """The plain arrays, built now where their sources are at hand, or ``None``."""
    try:
        for folder in _roots(root):
            path = built_file(recipe.name, split, folder)
            if path is not None:
                return path
        for folder in _roots(root):
            source = source_folder(recipe.name, split, folder)
            if source is not None:
                out = Path(root) if root is not None else cache_folder()
                return build_images(recipe.name, out, source, (split,))[0]
    except RecipeError as error:
        raise UserError(str(error)) from error
    return None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return arrays(path)
    except RecipeError as error:
        raise UserError(str(error)) from error


def _download(recipe: ImageRecipe, split: str, folder: Path) -> tuple[Any, Any]:
    """Through torchvision, which shows progress and compares with the publisher's md5."""
    from torchvision import datasets

    try:
        kind = getattr(datasets, _TORCHVISION[recipe.name])
        found = kind(str(folder / "downloads"), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{recipe.title} could not be downloaded to {folder / 'downloads'} ({error}). Fetch "
            f"{', '.join(file.url for file in recipe.files)} by hand and put it into {folder / recipe.name}."
        ) from error
    return found.data, found.targets
