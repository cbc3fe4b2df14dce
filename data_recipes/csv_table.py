"""Any table of user, item, rating or signal, and perhaps time, as a data set with disjoint splits (``clean``).

A table of the publisher's own, such as marketBias' csv files, goes the same way with its columns and rule fixed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_recipes.atomic_yaml import recbole_yaml
from data_recipes.clean_rule import read_rule
from data_recipes.csv_rows import Table
from data_recipes.errors import RecipeError
from data_recipes.manifest import describe_counts, sha256
from data_recipes.recipe import Folder, Job, Recipe
from data_recipes.table_split import Counts, Cut, TableSplit

NAME = "csv"
FIRST_SEED = 2020
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_KEPT = re.compile(r"(?!(?:user_id|item_id|rating|timestamp|injected|weight)$)[A-Za-z_][A-Za-z0-9_.]*")
"""Columns of the rule that keep their names: an atomic file's header can have them, and they stand for nothing else
there or in a copy that ``recdenoise corrupt`` or ``export`` makes."""


@dataclass(frozen=True)
class TableOptions:
    """What has to be said about a table.

    Attributes:
        user, item: columns of the ids.
        clean: the rule that makes a row clean, or None: then the clean test is the whole test.
        time: column of the time, or None.
        rating: column that is kept as ``rating`` for reports; by default the first that the rule names.
        name: the dataset's name; by default the file's.
        separator: one character, or ``tab``.
        encoding: of the text.
        split: ``random`` or ``time``; by default by time where there is one.
        seed: of the random split.
    """

    user: str
    item: str
    clean: str | None = None
    time: str | None = None
    rating: str | None = None
    name: str | None = None
    separator: str = ","
    encoding: str = "utf-8"
    split: str | None = None
    seed: int = FIRST_SEED


def csv_recipe(options: TableOptions) -> Recipe:
    """Return a recipe for one table; give it and the file to :func:`data_recipes.build`.

    Raises:
        RecipeError: options that cannot work.
    """
    split = options.split or ("time" if options.time else "random")
    if split not in ("random", "time"):
        raise RecipeError(f"Unknown split {split!r}. Valid: random, time.")
    if split == "time" and options.time is None:
        raise RecipeError("A split by time needs the column of the time: --time COLUMN.")
    separator = {"tab": "\t", "\\t": "\t"}.get(options.separator, options.separator)
    if len(separator) != 1 or separator in '"\r\n':
        raise RecipeError(f"The separator {options.separator!r} is not one character; tab is written as tab.")
    if options.user == options.item:
        raise RecipeError(f"User and item are both the column {options.user!r}.")
    if options.name is not None and not _NAME.fullmatch(options.name):
        raise RecipeError(
            f"The name {options.name!r} cannot be a folder's: letters, digits, dots, hyphens and underscores only."
        )
    if options.seed < 0:
        raise RecipeError(f"The seed is {options.seed}; it must be 0 or more.")
    if options.clean is not None:
        read_rule(options.clean)  # a mistake in it is told before anything is read

    def build(job: Job) -> list[Folder]:
        if job.source is None:
            raise RecipeError("Give the table: --from FILE.")
        source = _only_file(job.source) if job.unpacked else job.source
        name = options.name or _name_of(source)
        table = _table(source, options, separator)
        return [table_folder(recipe, name, table, options, Cut(split == "time", options.seed), job.work)]

    recipe = Recipe(
        name=NAME,
        title="a table of one's own",
        url="",
        licence="whatever holds for the table",
        citation="",
        protocols=("clean",),
        version=2,
        build=build,
    )
    return recipe


def _only_file(folder: Path) -> Path:
    """The table of an archive, wherever in it; what systems hide there does not count.

    Raises:
        RecipeError: no file or several; names them.
    """
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [name for name in inside if not any(part.startswith((".", "__MACOSX")) for part in name.parts)]
    if len(names) != 1:
        held = ", ".join(map(str, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        told = f"{len(names):,} files: {held}; unpack it and give one of them" if names else "no file"
        raise RecipeError(f"{folder} holds {told}.")
    return folder / names[0]


def _name_of(source: Path) -> str:
    """A dataset's name after its file: ``my clicks.csv.gz`` gives ``my-clicks``."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.(csv|tsv|txt|gz|inter)\b", "", source.name)).strip("-._")
    if not _NAME.fullmatch(words):
        raise RecipeError(f"{source} has no name that a data set could have: give --name.")
    return words


def _table(path: Path, options: TableOptions, separator: str) -> Table:
    columns = list(read_rule(options.clean).columns) if options.clean else []
    columns += [options.rating] if options.rating and options.rating not in columns else []
    return Table(path, options.user, options.item, options.time, tuple(columns), separator, options.encoding)


def table_folder(
    recipe: Recipe,
    name: str,
    table: Table,
    options: TableOptions,
    cut: Cut,
    work: Callable[[], Path],
    *,
    reference: Mapping[str, Any] | None = None,
    check: Callable[[Counts], list[str]] | None = None,
) -> Folder:
    """Split one table and describe the result.

    Args:
        recipe: that builds.
        name: the dataset's.
        table, options, cut: what to read and how to split it.
        work: gives a folder for what does not fit in memory.
        reference: published totals, if any.
        check: looks at what was counted before anything is written; returns notes, or raises.

    Raises:
        RecipeError: a table, a rule or a disk that cannot be used.
    """
    if not table.path.is_file():
        state = "is a folder; give the table itself" if table.path.is_dir() else "does not exist"
        raise RecipeError(f"{table.path} {state}.")
    rule = read_rule(options.clean) if options.clean else None
    rating = options.rating or (rule.columns[0] if rule else None)
    split = TableSplit(table, rule, cut, work())
    counts = split.read()
    notes = check(counts) if check is not None else []
    others = _kept_names([column for column in table.numbers if column != rating])
    files: dict[str, bytes | Path] = dict(split.write(name, rating, others))
    files[f"{name}.yaml"] = recbole_yaml(name, timestamps=table.time is not None, ratings=rating is not None)
    manifest = describe_counts(
        recipe,
        "clean",
        dataset=name,
        reference=reference,
        source={"sha256": sha256(table.path), **counts.source},
        splits=counts.splits,
        overlaps=counts.overlaps,
        dropped=counts.unknown_items,
        notes=[*notes, *_notes(options, cut, counts, rating)],
        seed=None if cut.by_time else cut.seed,
        clean={"rule": rule.text, "rating": rating} if rule else None,
        # A publisher's columns are known by its recipe's version.
        columns=_columns(table, rating, others) if recipe.name == NAME else None,
    )
    return Folder("clean", name, files, manifest)


def _kept_names(columns: Sequence[str]) -> dict[str, str]:
    """Column of the table -> its name in the files: its own where that can be, else one that no other column has."""
    names: dict[str, str] = {}
    for column in columns:
        name = column if _KEPT.fullmatch(column) else "table_" + re.sub(r"[^A-Za-z0-9_.]", "_", column)
        while name != column and (name in columns or name in names.values()):
            name += "_"
        names[column] = name
    return names


def _columns(table: Table, rating: str | None, others: Mapping[str, str]) -> dict[str, str]:
    """Column of the files -> column of the table."""
    found = {"rating": rating, "timestamp": table.time, **{kept: column for column, kept in others.items()}}
    return {kept: column for kept, column in found.items() if column is not None}


def _notes(options: TableOptions, cut: Cut, counts: Counts, rating: str | None) -> list[str]:
    """Sentences that a reader of the figures must know."""
    how = (
        "each user's history in order of time, 8:1:1, at least one row in train; equal times keep the table's order"
        if cut.by_time
        else f"at random by row, 8:1:1, seed {cut.seed}"
    )
    rule = (
        f"clean_test is the rows of test with {options.clean.strip()}; a row with an empty cell there is not clean."
        if options.clean
        else "No rule says which rows are clean, so clean_test is the whole of test and as noisy as it."
    )
    notes = [f"The split is {how}. train, valid and test share no interaction.", rule]
    if counts.missing:
        notes.append(f"{counts.missing:,} rows without a user or an item were left out.")
    if counts.repeated:
        notes.append(f"{counts.repeated:,} rows repeat the user and item of an earlier row and were left out.")
    lost = sum(counts.unknown_items.values())
    if lost:
        notes.append(f"{lost:,} rows of valid and test were left out, because train does not have their items.")
    strangers = counts.splits["clean_test"]["users_not_in_train"]
    if strangers:
        notes.append(f"{strangers:,} users of clean_test have no interaction in train; recdenoise reports them apart.")
    if counts.renamed:
        notes.append(f"{counts.renamed:,} names that RecBole would misread are percent-encoded.")
    if rating:
        notes.append(f"rating is the column {rating!r}; training never sees it.")
    return notes
