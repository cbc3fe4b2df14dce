"""What a checkpoint of :func:`vision.fit` must share with the call that goes on from it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vision.data import ImageData, LazyImages
from vision.options import NAMES
from vision.run import Run

_BLOCK = 4096
_ELSEWHERE = ("device", "checkpoint_seconds")
"""Options that make a run faster or keep it elsewhere, and no other run."""


def identity(
    run: Run, settings: Mapping[str, Any], whole: ImageData, validation: int, others: Mapping[str, ImageData]
) -> dict[str, Any]:
    """One plain value for everything that the outcome follows from, so that a message can name the one that differs.

    Args:
        run: before it trains.
        settings: of the result, see :func:`vision.fitting.described`.
        whole: the images given to train on, validation rows included.
        validation: number of their rows that validate.
        others: ``valid``, where it has images of its own, and ``clean``.
    """
    options, method = settings["options"], settings["method"]
    return {
        "model": _model(run),
        "images": fingerprint(whole.images),
        "labels": fingerprint(whole.labels),
        "masks": None if whole.masks is None else fingerprint(whole.masks),
        "attributes": {name: fingerprint(values) for name, values in sorted(whole.attributes.items())},
        "validation": _labelled(others["valid"]) if "valid" in others and not validation else validation,
        "clean images": _labelled(others["clean"]) if "clean" in others else None,
        "seed": settings["seed"],
        **{f"option {name}": options.get(name) for name in NAMES if name not in _ELSEWHERE},
        **{f"option method.{name}": value for name, value in method.items() if name != "name"},
        **{name: settings[name] for name in ("n_classes", "class_names", "augment")},
    }


def fingerprint(values: Tensor | LazyImages) -> str:
    """A short text that changes with any value, or, of images that are read as they are needed, with any file's place
    among the others or size."""
    found = hashlib.blake2b(repr(tuple(values.shape)).encode(), digest_size=8)
    if isinstance(values, Tensor):
        found.update(str(values.dtype).encode())
        for block in values.detach().split(_BLOCK) if values.ndim else [values.detach().reshape(1)]:
            found.update(block.cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()
    paths = [os.path.abspath(path) for path in getattr(values, "paths", ())]
    if not paths:  # of another kind: what the first images look like has to do
        return f"{found.hexdigest()} {fingerprint(values[: min(len(values), 16)])}"
    base = os.path.commonpath(paths)  # the whole folder may have moved
    for path in paths:
        size = os.path.getsize(path) if os.path.isfile(path) else -1
        found.update(f"{os.path.relpath(path, base)}\0{size}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def _labelled(data: ImageData) -> str:
    return f"images {fingerprint(data.images)}, labels {fingerprint(data.labels)}"


def _model(run: Run) -> str:
    """A network's name, and the weights of a file that it begins with; of a module its kind, layers and weights; of
    what a function builds the kind and layers, since its weights follow from the seed."""
    given = run.builder.model
    if isinstance(given, str):
        begun = run.options.weights is not None
        return f"{given} with weights {_weights(run.task.new_target(0))}" if begun else given
    model = given if isinstance(given, nn.Module) else run.task.new_target(0)
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # where a function lies in memory says nothing
    text = f"{type(model).__name__} {hashlib.blake2b(layers.encode(), digest_size=8).hexdigest()}"
    return f"{text} with weights {_weights(given)}" if isinstance(given, nn.Module) else text


def _weights(model: nn.Module) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        found.update(f"{name} {fingerprint(value) if isinstance(value, Tensor) else repr(value)}\n".encode())
    return found.hexdigest()
