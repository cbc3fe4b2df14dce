"""Images that take long to make are made once: arrays in the cache, checked each time that they are read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_recipes import RecipeError
from data_recipes.images_files import arrays
from data_recipes.lock import locked
from recdenoise import checkpoint
from recdenoise.errors import UserError
from vision.data.images import ImageData

_FORMAT = 1
"""Goes up when the same name gives other images: older files are then made anew."""


def digest(data: ImageData, *key: object) -> str:
    """A short text that changes with any pixel, label or bias of images in memory, and with ``key``."""
    found = hashlib.blake2b(repr((_FORMAT, tuple(data.images.shape), *key)).encode(), digest_size=16)
    for values in (data.images, data.labels, data.true_labels, data.attributes.get("bias")):
        if isinstance(values, torch.Tensor):
            found.update(values.cpu().contiguous().numpy().data)
    return found.hexdigest()


def once(folder: Path, split: str, base: ImageData, key: str, make: Callable[[], ImageData]) -> ImageData:
    """What ``make`` gives, from the cache where it was made before.

    Args:
        folder: of the files; the name of one holds the split and what it was made from.
        split: the part's name.
        base: images that it is made from.
        key: everything else that it depends on.
        make: makes it, the same each time. Of the result, images and ``bias`` are stored.

    Raises:
        UserError: a folder that cannot be written.
    """
    source = digest(base, key)
    path = folder / f"{split}-{source[:12]}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{split}.lock"):  # of several runs that begin together, one makes it
            return _read(path, base) or _write(path, make())
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror or error}. RECDENOISE_CACHE names another."
        ) from error


def _read(path: Path, base: ImageData) -> ImageData | None:
    """The stored images, or ``None`` where there are none, or a file that is not as it was written."""
    if not path.is_file():
        return None
    try:
        found = arrays(path)
        images, bias = torch.from_numpy(found["images"]), torch.from_numpy(found["attribute_bias"])
        data = dataclasses.replace(base, images=images, attributes={**base.attributes, "bias": bias})
        same = str(found["digest"]) == digest(data, "stored")
    except (RecipeError, UserError, KeyError, TypeError):
        return None
    return data if same else None


def _write(path: Path, data: ImageData) -> ImageData:
    with checkpoint.atomic_file(path) as file:
        np.savez(
            file,
            images=np.asarray(data.images),
            labels=data.labels.numpy(),
            attribute_bias=data.attributes["bias"].numpy(),
            digest=np.array(digest(data, "stored")),
        )
    return data
