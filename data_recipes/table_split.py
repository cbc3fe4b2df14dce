"""Train, valid, test and clean test of a table of interactions, disjoint, in two readings and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.clean_rule import Rule
from data_recipes.csv_rows import BLOCK_ROWS, Block, Table, read_blocks
from data_recipes.errors import RecipeError, because
from data_recipes.interactions import ATOMIC_FIELDS, sparsity
from data_recipes.spill import Buckets, new_users, repeats
from data_recipes.tokens import safe_tokens

TRAIN, VALID, TEST, UNKNOWN_ITEM, REPEATED, MISSING = range(6)
"""What becomes of a row."""
SPLITS = ("train", "valid", "test", "clean_test")
BUCKET_ROWS = 2_000_000
"""Rows that a bucket should hold, about."""
_SHORTEST_ROW = 12
"""Bytes: a table has at most its size divided by this many rows."""


@dataclass(frozen=True)
class Cut:
    """How rows are shared out.

    Attributes:
        by_time: each user's history in order of time, 8:1:1, at least one row of it in train; else at random by row.
        seed: of the random split.
    """

    by_time: bool
    seed: int


@dataclass
class Counts:
    """What was found on the way.

    Attributes:
        source: users, items, rows and sparsity of the rows that name a user and an item, repeated ones included.
        splits, overlaps: as in a manifest.
        missing: rows without a user or an item.
        repeated: rows whose pair an earlier row has.
        unknown_items: rows of valid and test whose item train does not have.
        renamed: rows with a name that had to be percent-encoded.
    """

    source: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    overlaps: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    repeated: int = 0
    unknown_items: dict[str, int] = field(default_factory=dict)
    renamed: int = 0


class TableSplit:
    """One table on its way into four files.

    Args:
        table: what to read.
        rule: which rows are clean; None takes all.
        cut: how to split.
        work: an empty folder for what does not fit in memory.
        block_rows, bucket_rows: how much is held in memory; the result does not depend on them.
    """

    def __init__(
        self,
        table: Table,
        rule: Rule | None,
        cut: Cut,
        work: Path,
        *,
        block_rows: int = BLOCK_ROWS,
        bucket_rows: int = BUCKET_ROWS,
    ) -> None:
        self.table, self.rule, self.cut, self.work, self.block_rows = table, rule, cut, work, block_rows
        size = table.path.stat().st_size if table.path.is_file() else 0
        self.buckets = Buckets(work, max(1, min(512, size // (_SHORTEST_ROW * bucket_rows))))
        self.counts = Counts()
        self.fate = np.empty(0, dtype=np.uint8)

    def read(self) -> Counts:
        """Read the table once, decide about every row and count.

        Raises:
            RecipeError: the table cannot be read, or the rule matches no row or every row.
        """
        row = n_clean = 0
        # One number a row of the table, drawn in its order: neither blocks nor buckets can change who gets which.
        rng, drawn = np.random.default_rng(self.cut.seed), [np.empty(0, dtype=np.uint8)]
        try:
            for block in read_blocks(self.table, self.block_rows):
                drawn.append(np.digitize(rng.random(len(block)), (0.8, 0.9)).astype(np.uint8))
                clean = self._clean(block)
                times = np.arange(row, row + len(block), dtype=np.float64) if block.times is None else block.times
                self.buckets.add(row, block.users, block.items, times, clean)
                row, n_clean = row + len(block), n_clean + int(clean.sum())
            if row == 0:
                raise RecipeError(f"{self.table.path} has a header and no rows.")
            if self.rule is not None and n_clean in (0, row):
                share = "no row" if n_clean == 0 else f"every one of the {row:,} rows"
                raise RecipeError(
                    f"The clean rule {self.rule.text!r} matches {share} of {self.table.path}; it has to tell clean "
                    "rows from the others."
                )
            self._decide(np.concatenate(drawn))
        except OSError as error:
            raise RecipeError(f"Cannot write to {self.work}: {because(error)}. Nothing was changed.") from error
        return self.counts

    def _clean(self, block: Block) -> np.ndarray:
        return np.ones(len(block), dtype=bool) if self.rule is None else self.rule(block.numbers)

    def _decide(self, drawn: np.ndarray) -> None:
        """Give every row its fate, then count. ``drawn``: each row's part in a random split."""
        self.fate = np.full(len(drawn), MISSING, dtype=np.uint8)
        in_train = np.zeros(len(self.buckets.items), dtype=bool)
        for records in self.buckets:
            again = repeats(records)
            self.fate[records["row"][again]] = REPEATED
            kept = records[~again]
            self.fate[kept["row"]] = _by_time(kept) if self.cut.by_time else drawn[kept["row"]]
            in_train[kept["item"][self.fate[kept["row"]] == TRAIN]] = True
        tally = _Tally(len(in_train))
        for records in self.buckets:
            part = self.fate[records["row"]]
            unknown = (part <= TEST) & ~in_train[records["item"]]
            for name, code in (("valid", VALID), ("test", TEST)):
                lost = int((unknown & (part == code)).sum())
                self.counts.unknown_items[name] = self.counts.unknown_items.get(name, 0) + lost
            part[unknown] = UNKNOWN_ITEM
            self.fate[records["row"]] = part
            tally.add(records, part)
        self.counts.missing = int((self.fate == MISSING).sum())
        self.counts.repeated = int((self.fate == REPEATED).sum())
        self.counts.source, self.counts.splits, self.counts.overlaps = tally.figures(in_train)

    def write(self, name: str, rating: str | None, others: Mapping[str, str] | None = None) -> dict[str, Path]:
        """Read the table again and write the four files, rows in the table's order.

        Args:
            name: the dataset's name.
            rating: the column that becomes ``rating``, or None.
            others: further columns of numbers to keep -> their names in the files.

        Returns:
            File's name -> where it lies in the work folder.

        Raises:
            RecipeError: a split would be empty, the table changed meanwhile, or the disk is full.
        """
        for split in SPLITS:
            if not self.counts.splits[split]["rows"]:
                raise RecipeError(f"The {split} split of {self.table.path} would be empty: it needs more rows.")
        others = others or {}
        fields = ["users", "items", *(["ratings"] if rating else []), *(["timestamps"] if self.table.time else [])]
        header = (
            "\t".join([*(ATOMIC_FIELDS[field] for field in fields), *(f"{kept}:float" for kept in others.values())])
            + "\n"
        )
        paths = {split: self.work / f"{name}.{split}.inter" for split in SPLITS}
        try:
            files = {split: path.open("w", encoding="utf-8", newline="") for split, path in paths.items()}
            try:
                for file in files.values():
                    file.write(header)
                for split, text in self._lines(rating, others):
                    files[split].write(text)
            finally:
                for file in files.values():
                    file.close()
        except OSError as error:
            raise RecipeError(f"Cannot write to {self.work}: {because(error)}. Nothing was changed.") from error
        return {path.name: path for path in paths.values()}

    def _lines(self, rating: str | None, others: Iterable[str]) -> Iterator[tuple[str, str]]:
        row = 0
        for block in read_blocks(self.table, self.block_rows):
            fate = self.fate[row : row + len(block)]
            if len(fate) != len(block):
                raise RecipeError(f"{self.table.path} changed while it was read; build again.")
            row += len(block)
            users, items = safe_tokens(block.users), safe_tokens(block.items)
            self.counts.renamed += sum(a != b for a, b in zip(users, block.users, strict=True))
            self.counts.renamed += sum(a != b for a, b in zip(items, block.items, strict=True))
            columns = [users, items]
            columns += [_numbers(block.numbers[rating])] if rating else []
            columns += [_numbers(block.times)] if block.times is not None else []
            columns += [_numbers(block.numbers[other]) for other in others]
            lines = ["\t".join(cells) + "\n" for cells in zip(*columns, strict=True)]
            clean = self._clean(block)
            for split, chosen in (
                ("train", fate == TRAIN),
                ("valid", fate == VALID),
                ("test", fate == TEST),
                ("clean_test", (fate == TEST) & clean),
            ):
                yield split, "".join([lines[k] for k in np.flatnonzero(chosen).tolist()])
        if row != len(self.fate):
            raise RecipeError(f"{self.table.path} changed while it was read; build again.")


def _by_time(records: np.ndarray) -> np.ndarray:
    """Cut every user's history 8:1:1 by time, equal times in the table's order; returns a fate for each record."""
    starts = new_users(records)
    user = np.cumsum(starts) - 1
    order = np.lexsort((records["row"], records["time"], user))
    counts = np.bincount(user)
    rank = np.empty(len(records), dtype=np.int64)
    rank[order] = np.arange(len(records)) - np.repeat(np.cumsum(counts) - counts, counts)
    n = counts[user]
    fate = np.full(len(records), TEST, dtype=np.uint8)
    fate[rank < n * 9 // 10] = VALID
    fate[rank < np.maximum(n * 8 // 10, 1)] = TRAIN
    return fate


class _Tally:
    """Figures of the source and of the splits, bucket by bucket."""

    def __init__(self, n_items: int) -> None:
        self.n_source_users = self.n_source_rows = 0
        self.users = dict.fromkeys(SPLITS, 0)
        self.rows = dict.fromkeys(SPLITS, 0)
        self.strangers = dict.fromkeys(SPLITS, 0)
        self.items = {split: np.zeros(n_items, dtype=bool) for split in SPLITS}

    def add(self, records: np.ndarray, fate: np.ndarray) -> None:
        """Count one bucket: ``records`` sorted, ``fate`` theirs."""
        if not len(records):
            return
        user = np.cumsum(new_users(records)) - 1
        n_users = int(user[-1]) + 1
        self.n_source_users += n_users
        self.n_source_rows += len(records)
        trained = np.bincount(user[fate == TRAIN], minlength=n_users) > 0
        chosen = {"train": fate == TRAIN, "valid": fate == VALID, "test": fate == TEST}
        chosen["clean_test"] = chosen["test"] & (records["clean"] == 1)
        for split, rows in chosen.items():
            present = np.bincount(user[rows], minlength=n_users) > 0
            self.users[split] += int(present.sum())
            self.rows[split] += int(rows.sum())
            self.strangers[split] += int((present & ~trained).sum())
            self.items[split][records["item"][rows]] = True

    def figures(self, in_train: np.ndarray) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, int]]:
        """Figures of the source, of each split, and overlaps."""
        source = {
            "users": self.n_source_users,
            "items": len(in_train),
            "rows": self.n_source_rows,
            "sparsity": sparsity(self.n_source_users, len(in_train), self.n_source_rows),
        }
        splits = {}
        for split in SPLITS:
            n_items = int(self.items[split].sum())
            splits[split] = {
                "users": self.users[split],
                "items": n_items,
                "rows": self.rows[split],
                "sparsity": sparsity(self.users[split], n_items, self.rows[split]),
                "duplicates": 0,
                "users_not_in_train": self.strangers[split],
                "items_not_in_train": int((self.items[split] & ~in_train).sum()),
            }
        pairs = [f"{a} & {b}" for k, a in enumerate(SPLITS) for b in SPLITS[k + 1 :]]
        overlaps = {pair: self.rows["clean_test"] if pair == "test & clean_test" else 0 for pair in pairs}
        return source, splits, overlaps


def _numbers(values: np.ndarray | None) -> list[str]:
    """Numbers as short as they can be: whole ones without a point, missing ones empty."""
    if values is None:
        return []
    return ["" if v != v else str(int(v)) if v.is_integer() and abs(v) < 2**53 else repr(v) for v in values.tolist()]
