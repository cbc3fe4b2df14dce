"""From what a person typed to the settings of a run, checked before any data is read."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from recdenoise import seeds
from recdenoise.denoisers import Denoiser, DenoiserConfig
from recdenoise.errors import UserError, unknown_name
from recdenoise.options import require
from vision import methods
from vision.options import NAMES, TrainOptions, read_train_options

CLEAN_IMAGES = 1000
"""Trusted training images that a method gets which needs some, where no number is given."""


FOLDER = ("masks", "image_size", "workers", "skip_unreadable")
"""Settings of how images and masks on disk are read."""


@dataclass(frozen=True)
class Settings:
    """A run, resolved and checked.

    Attributes:
        dataset: a name, a folder or a file.
        network: a name of :mod:`vision.networks`.
        method, config: the method and its options.
        options: how to train.
        noise: label noise to add, such as ``symmetric:0.4``; ``None`` takes the labels as they are.
        seed: everything random follows from it.
        valid: share (below 1) or number of the training images that choose the epoch.
        clean: training images whose true labels the method may learn from; they leave the training set.
        images: use only so many training images, drawn by the seed; ``None`` uses all.
        root: folder of data sets; ``None`` takes the usual places.
        masks: folder or ``.npz`` of masks of the images' contents, see :func:`vision.data.load`; ``None`` for none.
        image_size: side that the images of a folder are brought to; ``None`` where all are of one size.
        workers: processes that decode the images of a folder ahead.
        skip_unreadable: leave out image files that cannot be read, with a note, in place of stopping.
    """

    dataset: str
    network: str
    method: type[Denoiser]
    config: DenoiserConfig
    options: TrainOptions
    noise: str | None = None
    seed: int = 0
    valid: float | int = 0.2
    clean: int = 0
    images: int | None = None
    root: str | None = None
    masks: str | None = None
    image_size: int | None = None
    workers: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        require(self.valid >= 0, "valid", self.valid, "zero or more")
        require(self.clean >= 0, "clean", self.clean, "zero or more")
        require(self.images is None or self.images >= 2, "images", self.images, "2 or more")
        require(self.image_size is None or self.image_size >= 1, "image_size", self.image_size, "1 or more")
        require(self.workers >= 0, "workers", self.workers, "zero or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain types: what ``config.yaml`` holds. :func:`from_dict` reads it back."""
        places = ("dataset", "network", "noise", "seed", "valid", "clean", "images", "root", *FOLDER)
        return {
            "backend": "vision",
            **{name: getattr(self, name) for name in places},
            "method": {"name": self.method.name, **self.config.to_dict()},
            "options": self.options.to_dict(),
        }

    @property
    def reading(self) -> dict[str, Any]:
        """How :func:`vision.data.load` is to read the data set."""
        return {"root": self.root, **{name: getattr(self, name) for name in FOLDER}}

    def identity(self, version: str) -> dict[str, Any]:
        """What a checkpoint must share with a run to be continued by it."""
        flat = self.to_dict()
        flat |= {f"option {key}": value for key, value in flat.pop("options").items()}
        flat |= {f"option method.{key}": value for key, value in flat.pop("method").items() if key != "name"}
        # What makes a run faster or keeps it elsewhere does not make it another one.
        for name in ("root", "workers", "option device", "option checkpoint_seconds"):
            flat.pop(name)
        for name in FOLDER:  # a run that asks for none is the one that it was before there were any
            if flat.get(name) in (None, False):
                flat.pop(name, None)
        return {"version": version, **flat}


def parse_assignments(assignments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``["epochs=5", "method.c_1=10"]`` as options of the run and of the method; values are read as YAML.

    Raises:
        UserError: an assignment without ``=`` or with a value that is no YAML.
    """
    run: dict[str, Any] = {}
    method: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {text!r} must read KEY=VALUE, for example --set epochs=5 or method.c_1=10.")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text!r}: the value {value!r} is not a number, a word or a YAML list.") from None
        place, dot, name = key.partition(".")
        if dot and place != "method":
            raise UserError(f"--set {text!r}: only method.OPTION goes one level down.")
        (method if dot else run)[name if dot else key] = parsed
    return run, method


def resolve(
    dataset: str,
    network: str,
    method: str,
    *,
    run_options: Mapping[str, Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
    clean: int | None = None,
    **places: Any,
) -> Settings:
    """Check everything that can be checked without data.

    Args:
        dataset, network, method: by name; a data set may be a folder or a file.
        run_options: fields of :class:`~vision.options.TrainOptions`.
        method_options: options of the method.
        clean: trusted images; ``None`` gives 1000 to a method that needs some.
        places: the other fields of :class:`Settings`.

    Raises:
        UserError: anything that cannot work.
    """
    from vision import noise

    if "seed" in places:
        places["seed"] = seeds.whole(places["seed"])
    chosen = methods.get(method)
    misplaced = [n for n in run_options or {} if n not in NAMES and n in chosen.Config.__dataclass_fields__]
    if misplaced:
        raise UserError(f"{misplaced[0]} is an option of the method: --set method.{misplaced[0]}=VALUE.")
    config = chosen.read_config(method_options or {})
    options = read_train_options(run_options or {})
    check_network(network)
    if places.get("noise") is not None:
        spec = noise.parse(places["noise"])
        places["noise"] = None if spec.kind == "none" else str(spec)  # the whole name: which symmetric, for example
    if clean is None:
        clean = CLEAN_IMAGES if "clean" in chosen.needs else 0
    return Settings(dataset, network, chosen, config, options, clean=clean, **places)


@functools.cache
def check_network(name: str) -> None:
    """Try a network's name without drawing or storing anything; a grid asks for few of them often."""
    from vision import networks

    with torch.device("meta"):
        networks.build(name, 10, 3)


def from_dict(saved: Mapping[str, Any]) -> Settings:
    """Read back :meth:`Settings.to_dict`. Raises ``UserError`` for a mapping that is not one."""
    values = dict(saved)
    if values.pop("backend", None) != "vision":
        raise UserError("This is no run of recdenoise vision: its config.yaml has no 'backend: vision'.")
    spec, options = values.pop("method", None), values.pop("options", None)
    if not isinstance(spec, Mapping) or not isinstance(options, Mapping):
        raise UserError("The run's config.yaml has no usable method and options: recdenoise did not write it so.")
    if spec.get("name") not in methods.names():
        raise UserError(f"{unknown_name('method', spec.get('name'), methods.names())} Is a --plugin missing?")
    method, config = methods.parse(spec)
    try:
        return Settings(method=method, config=config, options=read_train_options(options), **values)
    except TypeError as error:
        raise UserError(f"The run's config.yaml was not written by this version: {error}.") from error


def read_settings(run: Path) -> Settings:
    """The settings of a run's folder. Raises ``UserError`` where it is none, or its ``config.yaml`` was cut short."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run: it has no config.yaml.")
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(saved, Mapping):
        raise UserError(f"{path} holds no settings.")
    return from_dict(saved)
