"""User-item interactions as columns, their RecBole files, and the figures that describe a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

ATOMIC_FIELDS = {
    "users": "user_id:token",
    "items": "item_id:token",
    "ratings": "rating:float",
    "timestamps": "timestamp:float",
}
"""Column of :class:`Interactions` -> its header in a RecBole atomic file."""


@dataclass(frozen=True)
class Interactions:
    """Equally long columns, one entry per interaction. Ids are the publisher's own (integers or strings)."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray | None = None
    timestamps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def rated(self) -> np.ndarray:
        """The ratings of interactions that must have them."""
        if self.ratings is None:
            raise ValueError("these interactions have no ratings")
        return self.ratings

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns that are present, by name, in the order of an atomic file."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in present.items() if column is not None}

    def take(self, rows: np.ndarray) -> Interactions:
        """Return the interactions at ``rows`` (integer positions, in that order)."""
        return Interactions(**{name: column[rows] for name, column in self.columns().items()})

    def pairs(self) -> Interactions:
        """Return users and items alone."""
        return Interactions(self.users, self.items)

    @classmethod
    def join(cls, parts: Iterable[Interactions]) -> Interactions:
        """Return the users and items of all ``parts``, one after the other."""
        parts = list(parts)
        return cls(np.concatenate([part.users for part in parts]), np.concatenate([part.items for part in parts]))


def inter_file(part: Interactions) -> bytes:
    """Write interactions as a RecBole ``.inter`` file: typed header, tab separated, newline ended, ids as tokens."""
    columns = part.columns()
    header = "\t".join(ATOMIC_FIELDS[name] for name in columns)
    rows = zip(*(map(str, column.tolist()) for column in columns.values()), strict=True)
    return "\n".join([header, *map("\t".join, rows), ""]).encode()


def id_file(header: str, ids: np.ndarray) -> bytes:
    """Write a RecBole ``.user`` or ``.item`` file that lists ids: with it RecBole knows those of no interaction too."""
    return "\n".join([header, *map(str, ids.tolist()), ""]).encode()


def sparsity(users: int, items: int, rows: int) -> float:
    """Share of the user x item matrix that is empty, to six digits (1.0 for an empty matrix)."""
    return round(1.0 - rows / (users * items), 6) if users and items else 1.0


def totals(part: Interactions) -> dict[str, Any]:
    """Count distinct users, distinct items and rows, with the sparsity that they give."""
    n_users, n_items = len(np.unique(part.users)), len(np.unique(part.items))
    return {
        "users": n_users,
        "items": n_items,
        "rows": len(part),
        "sparsity": sparsity(n_users, n_items, len(part)),
    }


def count_splits(splits: Mapping[str, Interactions]) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Describe every split and how splits overlap.

    Args:
        splits: interactions by the split's name; ``train`` must be among them.

    Returns:
        Per split: users, items, rows, sparsity, duplicates (rows whose pair came before in the same split),
        users_not_in_train and items_not_in_train (distinct). Then, for every two splits, ``"a & b"`` -> the number of
        distinct user-item pairs that both hold.
    """
    bounds = np.cumsum([len(part) for part in splits.values()])[:-1]
    users, n_users = _codes([part.users for part in splits.values()])
    items, n_items = _codes([part.items for part in splits.values()])
    has_user = dict(zip(splits, (_present(codes, n_users) for codes in np.split(users, bounds)), strict=True))
    has_item = dict(zip(splits, (_present(codes, n_items) for codes in np.split(items, bounds)), strict=True))
    pairs = dict(zip(splits, (np.unique(codes) for codes in np.split(users * n_items + items, bounds)), strict=True))
    counts = {}
    for name, part in splits.items():
        split_users, split_items = int(has_user[name].sum()), int(has_item[name].sum())
        counts[name] = {
            "users": split_users,
            "items": split_items,
            "rows": len(part),
            "sparsity": sparsity(split_users, split_items, len(part)),
            "duplicates": len(part) - len(pairs[name]),
            "users_not_in_train": int((has_user[name] & ~has_user["train"]).sum()),
            "items_not_in_train": int((has_item[name] & ~has_item["train"]).sum()),
        }
    overlaps = {
        f"{a} & {b}": len(np.intersect1d(pairs[a], pairs[b], assume_unique=True)) for a, b in combinations(splits, 2)
    }
    return counts, overlaps


def _codes(parts: list[np.ndarray]) -> tuple[np.ndarray, int]:
    """Number the distinct ids of all parts together; return each row's number (parts joined) and how many there are."""
    distinct, codes = np.unique(np.concatenate(parts), return_inverse=True)
    return codes, len(distinct)


def _present(codes: np.ndarray, n: int) -> np.ndarray:
    """Return a boolean of length ``n``: which numbers occur."""
    present = np.zeros(n, dtype=bool)
    present[codes] = True
    return present
