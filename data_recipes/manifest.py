"""``manifest.json``: what a built folder holds, where it came from, and whether it is still whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_recipes.errors import RecipeError, because
from data_recipes.interactions import Interactions, count_splits, totals
from data_recipes.recipe import Recipe

MANIFEST = "manifest.json"
_REQUIRED: dict[str, type] = {
    "recipe": str,
    "version": int,
    "protocol": str,
    "dataset": str,
    "reference": dict,
    "source": dict,
    "splits": dict,
    "files": dict,
}
SUMMARY_COLUMNS = (
    "split",
    "users",
    "items",
    "rows",
    "sparsity",
    "duplicates",
    "users not in train",
    "items not in train",
)
"""Headings of the rows of :func:`summary_rows`."""


def sha256(data: bytes | Path) -> str:
    """Return the sha256 of bytes, or of a file's, in hexadecimal."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(data).hexdigest()


def check_totals(where: str, found: Interactions, reference: Mapping[str, Any]) -> None:
    """Compare a source's users, items and rows with the published figures.

    Raises:
        RecipeError: one of them differs; the message names ``where`` and both figures.
    """
    check_figures(where, totals(found), reference)


def check_figures(where: str, counted: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Like :func:`check_totals`, from figures that were counted already."""
    wrong = [key for key in ("users", "items", "rows") if counted[key] != reference[key]]
    if wrong:
        told = ", ".join(f"{counted[key]:,} {key} instead of {reference[key]:,}" for key in wrong)
        hint = " The file looks truncated." if counted["rows"] < reference["rows"] else ""
        raise RecipeError(f"{where} has {told} ({reference['name']}).{hint}")


def describe(
    recipe: Recipe,
    protocol: str,
    *,
    reference: Mapping[str, Any],
    source: Interactions,
    source_sha256: str | Mapping[str, str],
    splits: Mapping[str, Interactions],
    dropped: Mapping[str, int],
    notes: Sequence[str],
    seed: int | None = None,
) -> dict[str, Any]:
    """Gather a protocol's manifest, all but the files' sha256.

    The same input gives the same manifest on every machine: it holds no date and no path.

    Args:
        recipe: the recipe that builds.
        protocol: name of the protocol.
        reference: published totals: name, users, items, rows, sparsity.
        source: all interactions of the raw file.
        source_sha256: sha256 of the raw rows, or of each raw file's rows by its name.
        splits: interactions of each split; ``train`` among them.
        dropped: rows that the protocol removed, by split.
        notes: sentences that a reader of the figures must know.
        seed: of a random split, else None.
    """
    counts, overlaps = count_splits(splits)
    return describe_counts(
        recipe,
        protocol,
        dataset=recipe.name,
        reference=reference,
        source={"sha256": source_sha256, **totals(source)},
        splits=counts,
        overlaps=overlaps,
        dropped=dropped,
        notes=notes,
        seed=seed,
    )


def describe_counts(
    recipe: Recipe,
    protocol: str,
    *,
    dataset: str,
    reference: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, Any]],
    overlaps: Mapping[str, int],
    dropped: Mapping[str, int],
    notes: Sequence[str],
    seed: int | None,
    clean: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Like :func:`describe`, from figures that were counted while the rows went by.

    Args:
        recipe, protocol, dropped, notes, seed: see :func:`describe`.
        dataset: the dataset's name.
        reference: published totals, or None where nothing is published.
        source: sha256, users, items, rows and sparsity of the raw rows.
        clean: the rule that tells clean rows and the column that is kept as ``rating``, where a rule was given.
        columns: columns of numbers and of the time in the files -> what they are called in the table, where one was
            read.
        splits, overlaps: as :func:`data_recipes.interactions.count_splits` returns them.
    """
    facts = {
        "recipe": recipe.name,
        "version": recipe.version,
        "protocol": protocol,
        "dataset": dataset,
        "title": recipe.title,
        "url": recipe.url,
        "licence": recipe.licence,
        "citation": recipe.citation,
        "seed": seed,
        "reference": dict(reference or {}),
        "source": dict(source),
        "splits": {name: dict(figures) for name, figures in splits.items()},
        "overlaps": dict(overlaps),
        "dropped": dict(dropped),
        "notes": list(notes),
    }
    more = {"clean": clean, "columns": columns}
    return {**facts, **{name: dict(value) for name, value in more.items() if value is not None}}


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the ``manifest.json`` of a folder that a recipe built; the other files are not looked at.

    Raises:
        RecipeError: no folder, no manifest, not JSON, or not the manifest of a recipe.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {folder}; a recipe builds one: OUT/<protocol>/<dataset>.")
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecipeError(
            f"{folder} has no {MANIFEST}, so no recipe built it (or its build was tampered with)."
        ) from None
    except OSError as error:
        raise RecipeError(f"Cannot read {path}: {because(error)}.") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not valid JSON ({error}); remove the folder and build it again.") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} is not a recipe's manifest: it holds {type(found).__name__}, not an object.")
    for key, kind in _REQUIRED.items():
        if not isinstance(found.get(key), kind):
            raise RecipeError(f"{path} is not a recipe's manifest: {key!r} is missing or not {kind.__name__}.")
    return found


def verify_folder(folder: str | Path) -> dict[str, Any]:
    """Read a folder's manifest and compare every file with the sha256 in it.

    Raises:
        RecipeError: as :func:`load_manifest`, or a file is missing or changed (the message names it).
    """
    manifest = load_manifest(folder)
    for name, expected in manifest["files"].items():
        path = Path(folder) / name
        try:
            found = sha256(path)
        except OSError as error:
            raise RecipeError(f"Cannot read {path}: {because(error)}; build the folder again.") from error
        if found != expected:
            raise RecipeError(
                f"{path} has changed since it was built (sha256 {found[:12]}..., expected {str(expected)[:12]}...); "
                "build the folder again."
            )
    return manifest


def summary_rows(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a printable table under :data:`SUMMARY_COLUMNS`: published totals, if any, the source's, each split's.

    Every cell is a string; what does not apply is empty. Sparsity has five decimals and no leading zero, as printed.
    """
    published = manifest["reference"]
    lines = [
        *([(published["name"], published)] if published else []),
        ("source", manifest["source"]),
        *manifest["splits"].items(),
    ]
    return [(name, *_cells(figures)) for name, figures in lines]


def _cells(figures: Mapping[str, Any]) -> tuple[str, ...]:
    counted = [f"{figures[key]:,}" for key in ("users", "items", "rows")]
    empty = f"{figures['sparsity']:.5f}".removeprefix("0")
    rest = [
        f"{figures[key]:,}" if key in figures else ""
        for key in ("duplicates", "users_not_in_train", "items_not_in_train")
    ]
    return (*counted, empty, *rest)
