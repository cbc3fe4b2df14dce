"""Labels that people gave: the files of CIFAR-10N and CIFAR-100N, or any file in their order."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_recipes import RecipeError
from data_recipes.images_files import arrays
from recdenoise.errors import UserError, unknown_name
from vision.data import named
from vision.data.arrays import as_labels
from vision.data.images import check_labels

CLEAN = "clean_label"
"""Name of the array with the true labels, in files that have it."""


def read(source: str, true: Tensor, n_classes: int, root: str | Path | None = None) -> Tensor:
    """Human labels for images with these true labels.

    Args:
        source: ``cifar10n-worse`` and so on, or ``FILE#ARRAY``: an ``.npz``, or the publisher's ``.pt``.
        true: ``(N,)`` int64 true labels, in the order of the file.
        n_classes: number of classes.
        root: see :func:`vision.data.named.load_named`.

    Raises:
        UserError: no such set, file or array, or labels that are not in the order of ``true``.
    """
    name = named.canonical(source)
    if name is not None and "-" in name and name.partition("-")[0].endswith("n"):
        base, _, which = name.partition("-")
        clean, noisy = named.human_labels(base, which, root)
        where = name
    else:
        where, noisy, known = _from_file(source)
        clean = true if known is None else known
    if len(noisy) != len(true):
        raise UserError(
            f"{where} has {len(noisy):,} labels and the data {len(true):,} images: human labels go with all images of "
            "the training set, before any part of it is held out."
        )
    wrong = int((clean != true).sum())
    if wrong:
        raise UserError(
            f"{where} has other true labels than the data for {wrong:,} of {len(true):,} images: it belongs to another "
            "set or another order of images."
        )
    check_labels(noisy, len(true), n_classes, "human label")
    return noisy


def _from_file(source: str) -> tuple[str, Tensor, Tensor | None]:
    path, _, array = source.partition("#")
    if not Path(path).is_file():
        sets = [each for each in named.names() if each.startswith(("cifar10n-", "cifar100n-"))]
        if "." in path or "/" in path:
            raise UserError(f"There is no file {path}; human labels are FILE#ARRAY or one of {', '.join(sets)}.")
        raise unknown_name("set of human labels", path, sets)
    found = _torch_file(Path(path)) if path.endswith((".pt", ".pth")) else _npz(Path(path))
    valid = [name for name in found if name != CLEAN]
    if array not in found:
        raise unknown_name(f"array of {path}: say human:{path}#ARRAY;", array, valid)
    clean = as_labels(found[CLEAN]) if CLEAN in found else None
    return path, as_labels(found[array]), clean


def _npz(path: Path) -> dict[str, Any]:
    try:
        return dict(arrays(path))
    except RecipeError as error:
        raise UserError(str(error)) from error


def _torch_file(path: Path) -> dict[str, Any]:
    """The publisher's file: a dict of NumPy arrays, which need naming before torch reads them without running code."""
    rebuild = np.array(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("int64", "int32", "uint8", "float64")]
    known: list[Any] = [np.ndarray, np.dtype, *kinds]
    known += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.serialization.safe_globals(known))
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a file of labels that torch can read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, not arrays of labels by name.")
    return found
