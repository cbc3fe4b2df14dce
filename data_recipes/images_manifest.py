"""``manifest.json`` of a folder of images: which arrays a recipe wrote there, and whether they are still the same."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_recipes.errors import RecipeError, because
from data_recipes.lock import locked
from data_recipes.manifest import MANIFEST, sha256

if TYPE_CHECKING:
    from data_recipes.images import ImageRecipe

KIND = "images"
IMAGE_COLUMNS = ("split", "images", "classes", "size", "fewest of a class", "most of a class")
"""Headings of the rows of :func:`image_rows`."""


def record(recipe: ImageRecipe, path: Path, split: str, contents: Mapping[str, np.ndarray]) -> None:
    """Add a file that was written to its folder's manifest; what else is in it stays.

    Args:
        recipe: that made it.
        path: of the file.
        split: its part.
        contents: its arrays.

    Raises:
        RecipeError: the manifest cannot be written.
    """
    folder = path.parent
    try:
        with locked(folder / ".manifest.lock"):
            before = _read(folder / MANIFEST) or {}
            facts = {
                "kind": KIND,
                "recipe": recipe.name,
                "title": recipe.title,
                "url": recipe.url,
                "licence": recipe.licence,
                "citation": recipe.citation,
                "notes": list(recipe.notes),
                "splits": {**before.get("splits", {}), split: _figures(recipe, contents)},
                "files": {**before.get("files", {}), path.name: sha256(path)},
            }
            hidden = folder / f".{MANIFEST}.{uuid.uuid4().hex}"
            hidden.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(hidden, folder / MANIFEST)
    except OSError as error:
        raise RecipeError(f"Cannot write {folder / MANIFEST}: {because(error)}.") from error


def _figures(recipe: ImageRecipe, contents: Mapping[str, np.ndarray]) -> dict[str, Any]:
    labels = next(contents[name] for name in ("labels", "clean_label") if name in contents)
    counts = np.bincount(labels, minlength=recipe.n_classes).tolist()
    shape = list(contents["images"].shape[1:]) if "images" in contents else []
    return {"images": len(labels), "classes": recipe.n_classes, "shape": shape, "of_class": counts}


def _read(path: Path) -> dict[str, Any] | None:
    """The manifest, or ``None`` where there is none of images."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("kind") == KIND
    return found if whole and all(isinstance(found.get(key), dict) for key in ("splits", "files")) else None


def is_images(folder: Path) -> bool:
    """Whether a folder has the manifest of a recipe of images."""
    return _read(folder / MANIFEST) is not None


def verify_images(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest and compare every file with the sha256 in it.

    Raises:
        RecipeError: no manifest of images, or a file that is missing or changed; the message names it.
    """
    manifest = _read(folder / MANIFEST)
    if manifest is None:
        raise RecipeError(
            f"{folder} has no {MANIFEST} of images, so no recipe wrote it; remove its files and build again."
        )
    for name, expected in manifest["files"].items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise RecipeError(f"Cannot read {folder / name}: {because(error)}; build it again.") from error
        if found != expected:
            raise RecipeError(
                f"{folder / name} has changed since it was built (sha256 {found[:12]}..., expected "
                f"{str(expected)[:12]}...); remove it and build it again."
            )
    return manifest


def image_rows(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A printable row for each split under :data:`IMAGE_COLUMNS`."""
    return [
        (
            split,
            f"{figures['images']:,}",
            str(figures["classes"]),
            " x ".join(str(side) for side in figures["shape"]) or "labels alone",
            f"{min(figures['of_class']):,}",
            f"{max(figures['of_class']):,}",
        )
        for split, figures in manifest["splits"].items()
    ]
