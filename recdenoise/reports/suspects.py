"""Training interactions from the most suspicious to the least, beside what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import data_recipes
from data_recipes.clean_rule import read_rule
from recdenoise import checkpoint, detection
from recdenoise.errors import UserError
from recdenoise.own_data import INJECTED, read_inter
from recdenoise.reports.inspection import probability_table

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from recdenoise.recbole_adapter.experiment import Run


ATOMIC_NAMES = ("user_id", "item_id", "rating", "timestamp")
"""Columns of a built folder's files that may stand for a column of another name."""


@dataclass(frozen=True)
class KnownNoise:
    """Which training rows are known to be noise, and how that is known.

    Attributes:
        flags: ``(n,)`` booleans, in the order of the training file.
        words: for people: ``injected is 1``, ``not rating >= 5``.
    """

    flags: NDArray[np.bool_]
    words: str


def suspect_table(run: Run, known: KnownNoise | None = None) -> pd.DataFrame:
    """Every training row with ``p_noise`` = 1 - P(y = 1 | observed), the most suspicious first.

    Methods without a posterior of their own (all but DeCA) take the probability that they give the pair. The loss of an
    observed pair is its negative logarithm, so their order is that of the losses, the largest first. Rows with one
    probability keep the order of the file.

    Args:
        run: trained.
        known: adds a column ``noise`` of 0 and 1.

    Returns:
        Columns row (place in the training file, from 0), user, item, rating (where the data has one), p_noise, noise.

    Raises:
        UserError: the method says nothing about single labels.
    """
    table = probability_table(run)
    table.insert(0, "row", np.arange(len(table)))
    # Sorted before the subtraction: 1 - p is the same number for all p below 1e-16.
    order = np.argsort(table["p_clean"].to_numpy(), kind="stable")
    table["p_noise"] = 1.0 - table.pop("p_clean").to_numpy().astype(np.float64)
    if known is not None:
        table["noise"] = known.flags.astype(int)
    return table.iloc[order].reset_index(drop=True)


def measure(run: Run, known: KnownNoise) -> detection.Detection:
    """How well a run tells the noise that is known. Raises ``UserError`` where all or no rows are noise."""
    probability = probability_table(run)["p_clean"].to_numpy()
    return detection.measure(-probability.astype(np.float64), known.flags)


def measure_rarity(run: Run, known: KnownNoise) -> detection.Detection:
    """How well the noise is told without any model: the interactions with the rarest items first."""
    items = run.data.train[1].numpy()
    return detection.measure(-np.bincount(items)[items], known.flags)


def detection_record(run: Run, known: KnownNoise) -> dict[str, Any]:
    """What is known and how well it is found, by the run and by taking the rarest items first, as plain types."""
    found, rarity = measure(run, known), measure_rarity(run, known)
    return {"known": known.words, **found.to_dict(), "rarest_first": rarity.to_dict()}


def write_detection(path: Path, run: Run) -> None:
    """Write :func:`detection_record` as JSON. Raises ``UserError`` where no noise is known."""
    known = known_noise(run)
    if known is None:
        raise UserError(f"{train_file(run)}: no noise is known here, so that nothing can be measured.")
    checkpoint.write_json(path, detection_record(run, known))


def known_noise(run: Run, flag: str | None = None, clean: str | None = None) -> KnownNoise | None:
    """What the training file knows about its rows.

    Args:
        run: any run on a built folder.
        flag: a column that holds 1 for noise and 0 for the rest.
        clean: a rule such as ``rating >= 5`` that clean rows meet, see :mod:`data_recipes.clean_rule`; injected rows
            are noise whatever they meet.

    Returns:
        Without ``flag`` and ``clean``: injected rows where there are some; else rows that do not meet the rule that
        the data set was built with, if its columns were kept; without a rule rows rated lower than every row of the
        clean test, if that is not the whole test; else ``None``.

    Raises:
        UserError: both are given, there is no such column, it holds something else, or a rule that is none.
    """
    if flag is not None and clean is not None:
        raise UserError("Give --flag or --clean, not both.")
    path = train_file(run)
    columns = train_columns(run)
    if flag is not None:
        return KnownNoise(flagged(columns, flag, path), f"{flag} is 1")
    manifest = data_recipes.load_manifest(run.data.folder)
    kept = table_columns(manifest)
    in_words_of_the_table = columns.assign(**{name: columns[own] for name, own in kept.items() if own in columns})
    if clean is not None:
        noise = ~meets(in_words_of_the_table, clean, path)
        if INJECTED in columns:
            noise |= flagged(columns, INJECTED, path)
        return KnownNoise(noise, f"not {clean}")
    if INJECTED in columns:
        return KnownNoise(flagged(columns, INJECTED, path), f"{INJECTED} is 1")
    rule = built_rule(manifest)
    if rule is not None:
        if lost_columns(manifest):
            return None
        return partly(KnownNoise(~meets(in_words_of_the_table, rule, path), f"not {rule}"))
    rating = str(run.data.config["RATING_FIELD"])
    test_path = path.with_name(f"{run.data.name}.clean_test.inter")
    test = read_inter(test_path).rows
    whole = manifest["splits"].get("clean_test") == manifest["splits"].get("test")
    if whole or rating not in columns or rating not in test:
        return None
    rated = numbers(test, rating, test_path, gaps=True)
    if np.isnan(rated).all():
        return None
    least = float(np.nanmin(rated))
    words = f"{rating} below {least:g}, the least of the clean test"
    return partly(KnownNoise(numbers(columns, rating, path, gaps=True) < least, words))


def built_rule(manifest: Mapping[str, Any]) -> str | None:
    """The rule for clean rows that a folder was built with."""
    return (manifest.get("clean") or {}).get("rule")


def table_columns(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Column of the table that a folder was built from -> what its files call it; those that it kept."""
    if "columns" in manifest:
        return {name: own for own, name in manifest["columns"].items()}
    # Recipes of publishers' tables, and older builds, keep the rule's columns under their names, but for the rating and
    # for names that mean something else in the files.
    rule, rating = built_rule(manifest), (manifest.get("clean") or {}).get("rating")
    names = [name for name in (read_rule(rule).columns if rule else ()) if name not in ATOMIC_NAMES]
    return {name: name for name in names} | ({rating: "rating"} if rating else {})


def lost_columns(manifest: Mapping[str, Any]) -> list[str]:
    """Columns of the rule that a folder was built with whose values its files do not keep."""
    rule, kept = built_rule(manifest), table_columns(manifest)
    return [name for name in read_rule(rule).columns if name not in kept] if rule else []


def nothing_known(run: Run) -> str:
    """Why :func:`known_noise` knows nothing, in a sentence."""
    manifest = data_recipes.load_manifest(run.data.folder)
    lost = lost_columns(manifest)
    if lost:
        return (
            f"No noise is known here: the data set was built by {built_rule(manifest)!r}, and its files do not keep "
            f"the column {' and '.join(map(repr, lost))}."
        )
    return "No noise is known here: no column, rule or rating says it."


def partly(known: KnownNoise) -> KnownNoise | None:
    """Nothing where all rows or none are noise: nobody asked for this measure."""
    return known if 0 < known.flags.sum() < len(known.flags) else None


def train_file(run: Run) -> Path:
    """Where a run's training rows come from."""
    return run.data.folder / f"{run.data.name}.train.inter"


def train_columns(run: Run) -> pd.DataFrame:
    """The training file's columns as text, a row for every row of the run.

    Raises:
        UserError: the run's rows are not the file's, because its configuration filters them.
    """
    path = train_file(run)
    table = read_inter(path).rows
    fields = (run.data.dataset.uid_field, run.data.dataset.iid_field)
    tokens = (run.data.user_tokens, run.data.item_tokens)
    same = len(table) == len(run.data.train[0]) and all(
        bool((names[ids.numpy()].astype(str) == table[field].to_numpy(dtype=object)).all())
        for field, names, ids in zip(fields, tokens, run.data.train, strict=True)
    )
    if not same:
        raise UserError(f"The run does not train on the rows of {path} as they stand, so its columns do not apply.")
    return table


def numbers(columns: pd.DataFrame, column: str, path: Path, gaps: bool = False) -> NDArray[np.float64]:
    """A column as numbers; with ``gaps`` empty cells are NaN.

    Raises:
        UserError: names file, line and column, or lists the columns there are.
    """
    import pandas as pd

    if column not in columns:
        raise UserError(f"{path} has no column {column!r}; it has {', '.join(columns)}.")
    values = pd.to_numeric(columns[column], errors="coerce").to_numpy(dtype=np.float64)
    empty = (columns[column] == "").to_numpy() if gaps else np.zeros(len(columns), dtype=bool)
    bad = np.flatnonzero(np.isnan(values) & ~empty)
    if len(bad):
        told = f"{columns[column].iloc[bad[0]]!r} in column {column!r}"
        raise UserError(f"{path}, line {bad[0] + 2}: {told} is not a number.")
    return values


def flagged(columns: pd.DataFrame, column: str, path: Path) -> NDArray[np.bool_]:
    """Where a column of 0 and 1 holds 1. Raises ``UserError`` as :func:`numbers`, or for any other number."""
    values = numbers(columns, column, path)
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        told = f"column {column!r} holds {values[bad[0]]:g}"
        raise UserError(f"{path}, line {bad[0] + 2}: {told}, and a flag is 0 or 1; --clean takes a rule.")
    return values == 1


def meets(columns: pd.DataFrame, rule: str, path: Path) -> NDArray[np.bool_]:
    """Which rows meet a rule such as ``rating >= 5``; a row with an empty cell in a column of the rule does not.

    Raises:
        UserError: as :func:`numbers`, or for no rule.
    """
    try:
        read = read_rule(rule)
    except data_recipes.RecipeError as error:
        raise UserError(str(error)) from error
    return read({name: numbers(columns, name, path, gaps=True) for name in read.columns})
