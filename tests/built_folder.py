"""A folder as a recipe builds it, small enough to train on in a blink: both protocols of forty users, thirty items."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

import data_recipes
from data_recipes.atomic_yaml import recbole_yaml
from data_recipes.interactions import Interactions, inter_file
from data_recipes.manifest import describe
from data_recipes.publish import write_folder

NAME = "tiny"
N_USERS, N_ITEMS = 40, 30

Split = dict[str, Interactions]


def splits(protocol: str, seed: int = 3) -> Split:
    """Ten training, two validation and four test rows a user, of which some are clean (rating 5).

    Users like items of their own taste. Under ``paper`` the test also holds the validation rows, as published ones do.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list[tuple[str, str, int]]] = {"train": [], "valid": [], "test": []}
    for user in range(1, N_USERS + 1):
        taste = np.where(np.arange(1, N_ITEMS + 1) % 2 == user % 2, 4.0, 1.0)
        items = rng.choice(np.arange(1, N_ITEMS + 1), 16, replace=False, p=taste / taste.sum())
        ratings = np.where(items % 2 == user % 2, 5, 2)
        for place, (item, rating) in enumerate(zip(items.tolist(), ratings.tolist(), strict=True)):
            row = (f"u{user}", f"i{item}", rating)
            rows["train" if place < 10 else "valid" if place < 12 else "test"].append(row)
            if protocol == "paper" and 10 <= place < 12:
                rows["test"].append(row)
    parts = {name: interactions(part) for name, part in rows.items()}
    parts["clean_test"] = parts["test"].take(np.flatnonzero(parts["test"].ratings == 5))
    return parts


def interactions(rows: list[tuple[str, str, int]]) -> Interactions:
    """Columns from rows of user, item, rating; possibly none."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return Interactions(
        np.array(columns[0], dtype=str), np.array(columns[1], dtype=str), np.array(columns[2], dtype=int)
    )


def recipe() -> data_recipes.Recipe:
    """A recipe that is not registered: its folders are read like any other's."""
    return data_recipes.Recipe(
        NAME, "Tiny", "https://example.org", "free", "nobody", ("paper", "clean"), 1, lambda _: []
    )


def write_built(
    out: Path, protocols: tuple[str, ...] = ("paper", "clean"), edit: Callable[[Split], None] | None = None
) -> Path:
    """Write ``out/<protocol>/tiny`` with whole manifests and return ``out``.

    Args:
        out: output folder.
        protocols: which to write.
        edit: changes the splits of each before they are written.
    """
    for protocol in protocols:
        parts = splits(protocol)
        if edit is not None:
            edit(parts)
        files = {f"{NAME}.{name}.inter": inter_file(part) for name, part in parts.items()}
        files[f"{NAME}.yaml"] = recbole_yaml(NAME, timestamps=False)
        source = interactions([])
        manifest = describe(
            recipe(),
            protocol,
            reference={"name": "nowhere", "users": 0, "items": 0, "rows": 0, "sparsity": 1.0},
            source=source,
            source_sha256="0" * 64,
            splits=parts,
            dropped={},
            notes=[],
        )
        write_folder(data_recipes.Folder(protocol, NAME, files, manifest), out)
    return out


def change_training(out: Path) -> None:
    """Build the folder anew without its last training row."""

    def shorter(parts: Split) -> None:
        parts["train"] = parts["train"].take(np.arange(len(parts["train"]) - 1))

    shutil.rmtree(out)
    write_built(out, edit=shorter)
