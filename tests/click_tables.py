"""Tables of clicks to build data sets from, and what comes out, as rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

import data_recipes
from data_recipes.csv_table import TableOptions, csv_recipe

SPLITS = ("train", "valid", "test", "clean_test")
Row = dict[str, str]


def clicks(n: int = 600, seed: int = 0, n_users: int = 40, n_items: int = 12) -> list[Row]:
    """Rows with repeated pairs, a user or an item missing here and there, and equal times."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        user, item = f"u {rng.integers(n_users)}", f"i{rng.integers(n_items)}"
        lost = rng.random()
        rows.append(
            {
                "user": "" if lost < 0.02 else user,
                "item": "" if lost > 0.98 else item,
                "dwell": "" if 0.5 < lost < 0.55 else f"{rng.integers(0, 400) / 10}",
                "ts": str(rng.integers(50)),
            }
        )
    return rows


def write(path: Path, rows: list[Row], separator: str = ",", encoding: str = "utf-8") -> Path:
    """Write rows as a table with a header and return the path."""
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_inter(folder: Path, split: str) -> list[tuple[str, ...]]:
    """Cells of a split's rows."""
    lines = (folder / f"{folder.name}.{split}.inter").read_text().splitlines()
    return [tuple(line.split("\t")) for line in lines[1:]]


def build(source: Path, out: Path, **options: Any) -> Path:
    """Build the table's folder, with the rule ``dwell > 10`` where no other is given."""
    given: dict[str, Any] = {"user": "user", "item": "item", "clean": "dwell > 10", **options}
    (folder,) = data_recipes.build(csv_recipe(TableOptions(**given)), out, source)
    return folder
