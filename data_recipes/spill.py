"""Interactions on disk, in buckets by user, so that a table larger than memory can be split and counted.

All rows of a user lie in one bucket, so duplicates, a user's history in order of time and distinct users are found
bucket by bucket. Memory holds one bucket, the catalogue of items and one byte for each row of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

RECORD = np.dtype([("row", "<i8"), ("user", "<u8", 2), ("item", "<i4"), ("time", "<f8"), ("clean", "u1")])
"""Number of the row in the table, a 128-bit digest of the user's name, the item's number, time, whether it is clean."""


class Buckets:
    """Rows by user, in files of one folder.

    Args:
        folder: where the files go.
        n: number of buckets; what is read from them does not depend on it.
    """

    def __init__(self, folder: Path, n: int) -> None:
        self.paths = [folder / f"bucket.{k}" for k in range(n)]
        self.items: dict[str, int] = {}

    def add(
        self, first_row: int, users: Sequence[str], items: Sequence[str], times: np.ndarray, clean: np.ndarray
    ) -> None:
        """Append rows; rows without a user or an item are left out.

        Args:
            first_row: number of the first of them in the table.
            users, items: names, "" where missing.
            times: ``(n,)`` float64.
            clean: ``(n,)`` bool.
        """
        records = np.empty(len(users), dtype=RECORD)
        records["row"] = np.arange(first_row, first_row + len(users))
        digests = b"".join([blake2b(user.encode("utf-8", "surrogatepass"), digest_size=16).digest() for user in users])
        records["user"] = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        numbers, present = self.items, np.array([bool(u and i) for u, i in zip(users, items, strict=True)], dtype=bool)
        records["item"] = [numbers.setdefault(item, len(numbers)) if item else -1 for item in items]
        records["time"], records["clean"] = times, clean
        records = records[present]
        bucket = (records["user"][:, 0] % np.uint64(len(self.paths))).astype(np.intp)
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(1, len(self.paths)))
        for path, part in zip(self.paths, np.split(records[order], cuts), strict=True):
            if len(part):
                with path.open("ab") as file:
                    file.write(part.tobytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each bucket's records, by user, item and row."""
        for path in self.paths:
            if path.is_file():
                records = np.fromfile(path, dtype=RECORD)
                order = np.lexsort((records["row"], records["item"], records["user"][:, 1], records["user"][:, 0]))
                yield records[order]


def new_users(records: np.ndarray) -> np.ndarray:
    """Tell for sorted records where another user begins, ``(n,)`` bool."""
    starts = np.ones(len(records), dtype=bool)
    starts[1:] = (records["user"][1:] != records["user"][:-1]).any(axis=1)
    return starts


def repeats(records: np.ndarray) -> np.ndarray:
    """Tell for sorted records which repeat a pair of an earlier row, ``(n,)`` bool."""
    again = ~new_users(records)
    again[1:] &= records["item"][1:] == records["item"][:-1]
    return again
