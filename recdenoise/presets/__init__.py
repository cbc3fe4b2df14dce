"""Settings of published table cells: one YAML file a cell, ``<data set>/<model>/<denoiser>.yaml``."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from recdenoise.errors import UserError, unknown_name

NAMES = ("paper",)
FALLBACK = "normal"
"""WBPR, R-CE and Ensemble have no published settings: they take the plain row of their model and data set."""


def _folder() -> Traversable:
    return resources.files(__name__)


def available() -> list[tuple[str, str, str]]:
    """Cells with a file of their own: (data set, model, denoiser), sorted."""
    return sorted(
        (dataset.name, model.name, cell.name.removesuffix(".yaml"))
        for dataset in _folder().iterdir()
        if dataset.is_dir() and not dataset.name.startswith("_")
        for model in dataset.iterdir()
        if model.is_dir()
        for cell in model.iterdir()
        if cell.name.endswith(".yaml")
    )


def load(preset: str, dataset: str, model: str, denoiser: str) -> dict[str, Any]:
    """Options of one cell, with RecBole's keys and a ``denoiser`` mapping without a name.

    ``denoiser_under_paper_code`` holds what the published run had and only ``compat: paper_code`` can do.

    A denoiser without a file of its own gets the settings of ``normal``.

    Raises:
        UserError: no such preset, or none for this data set and model; it lists those there are.
    """
    if preset not in NAMES:
        raise unknown_name("preset", preset, NAMES)
    cells = available()
    if (dataset, model, FALLBACK) not in cells:
        there = sorted({f"{m} on {d}" for d, m, _ in cells})
        raise UserError(f"The preset {preset!r} has no settings for {model} on {dataset}. It has: {', '.join(there)}.")
    name = denoiser if (dataset, model, denoiser) in cells else FALLBACK
    text = (_folder() / dataset / model / f"{name}.yaml").read_text(encoding="utf-8")
    options = yaml.safe_load(text)
    assert isinstance(options, dict)
    return options
