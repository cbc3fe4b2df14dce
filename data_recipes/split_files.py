"""Published split files: rows of ``user item value`` (whole numbers, tabs, no header), found, checked and read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.errors import MissingFiles, RecipeError, because
from data_recipes.interactions import Interactions
from data_recipes.manifest import check_totals, sha256
from data_recipes.recipe import RawFile

_LONGEST = 9
"""Digits of a field: ids of nine digits fit any integer type, and longer ones are no ids."""


@dataclass(frozen=True)
class Rows:
    """A split file that was read.

    Attributes:
        part: its interactions, the third column as ratings where there is one.
        sha256: of its rows with newline endings.
    """

    part: Interactions
    sha256: str


def find_files(source: Path, dataset: str, names: Sequence[str]) -> dict[str, Path]:
    """Look for raw files in a folder, in its subfolder named after the data set, and where the authors keep them.

    Returns:
        Name -> path of those that are there, all from one folder: the first that has any.

    Raises:
        RecipeError: ``source`` is no folder.
    """
    if not source.is_dir():
        state = "is a file" if source.exists() else "does not exist"
        raise RecipeError(f"{source} {state}; give the folder that holds {', '.join(names)}.")
    for place in ("", dataset, f"data/{dataset}", f"recsys/{dataset}"):
        found = {name: source / place / name for name in names if (source / place / name).is_file()}
        if found:
            return found
    return {}


def require_files(source: Path, dataset: str, files: Sequence[RawFile]) -> dict[str, Path]:
    """Like :func:`find_files`, all of them. Raises :class:`RecipeError` that names those that are missing."""
    names = [file.name for file in files]
    found = find_files(source, dataset, names)
    missing = [name for name in names if name not in found]
    if missing:
        where = next(iter(found.values())).parent if found else source
        raise MissingFiles(f"{where} has no {' and no '.join(missing)}; {dataset} is made from {', '.join(names)}.")
    return found


def read_rows(path: Path, file: RawFile, columns: Sequence[tuple[str, int, int]]) -> Rows:
    """Read a split file.

    Args:
        path: where it lies.
        file: what is known of it; where ``rows_sha256`` is set, the rows have to be exactly those.
        columns: name, least and largest value of each column: user, item and perhaps a value.

    Raises:
        RecipeError: the file cannot be read or is empty, a row is malformed (names the line), or the rows are others
            than the published ones (gives both sha256).
    """
    text = read_text(path)
    if not text:
        raise RecipeError(f"{path} is empty.")
    row = rb"\t".join([rb"\d{1,%d}+" % _LONGEST] * len(columns)) + rb"\n"
    if not re.fullmatch(rb"(?:" + row + rb")*+", text):
        raise _bad_row(path, text, re.compile(row), [name for name, _, _ in columns])
    values = np.array(text.split(), dtype=np.int64).reshape(-1, len(columns))
    for place, (name, least, most) in enumerate(columns):
        wrong = np.flatnonzero((values[:, place] < least) | (values[:, place] > most))
        if len(wrong):
            raise RecipeError(
                f"{path}, line {wrong[0] + 1}: {name} is {values[wrong[0], place]}; expected {least} to {most}."
            )
    found = sha256(text)
    if file.rows_sha256 is not None and found != file.rows_sha256:
        raise RecipeError(
            f"{path} is not the published {file.name}: its {len(values):,} rows have sha256 {found}, expected "
            f"{file.rows_sha256}."
        )
    ratings = values[:, 2] if len(columns) > 2 else None
    return Rows(Interactions(values[:, 0], values[:, 1], ratings), found)


def read_text(path: Path) -> bytes:
    """Bytes of a text file with newline endings, the last line's included. Raises :class:`RecipeError`."""
    try:
        text = path.read_bytes().replace(b"\r\n", b"\n")
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}.") from None
    except OSError as error:
        raise RecipeError(f"Cannot read {path}: {because(error)}.") from error
    return text + b"\n" if text and not text.endswith(b"\n") else text


def _bad_row(path: Path, text: bytes, row: re.Pattern[bytes], names: Sequence[str]) -> RecipeError:
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not row.fullmatch(line):
            shown = line.rstrip(b"\n")[:60].decode("utf-8", "replace")
            return RecipeError(
                f"{path}, line {number}: found {shown!r}; expected {', '.join(names)} as whole numbers, tab-separated."
            )
    raise AssertionError(f"no bad row in {path}, which does not match")


def check_source(where: str, found: Interactions, expected: Mapping[str, int], reference: str) -> None:
    """Compare users, items and rows of the files together with what the published ones hold.

    Raises:
        RecipeError: one of them differs.
    """
    check_totals(where, found, {"name": reference, **expected})
