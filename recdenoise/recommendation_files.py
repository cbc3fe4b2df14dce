"""Measure the recommendations of any system from two text files: what it recommended, and what was true.

A file holds one user-item pair a line, separated by tabs or commas, optionally compressed (``.gz``), in UTF-8. With a
header the columns are found by name, RecBole's typed names (``user_id:token``) included, and further columns are
ignored. Without one the columns are user, item and, optionally, a number: the score in recommendations, a rating
(not used, so it may be missing) in a truth file. Users and items are compared as strings.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from recdenoise.errors import UserError
from recdenoise.interactions import Interactions
from recdenoise.ranking import RankingResult, evaluate_lists, plan_metrics

if TYPE_CHECKING:
    import pandas as pd

# What a header may call each column, in lower case and without a ``:type``; the first that is there wins.
_COLUMNS = {
    "user": ("user", "user_id"),
    "item": ("item", "item_id"),
    "rank": ("rank",),
    "score": ("score", "rating", "value", "prediction"),
}


@dataclass(frozen=True)
class PairFile:
    """Rows of a file, in its order.

    Attributes:
        path: where they were read.
        users: (n,) str objects.
        items: (n,) str objects.
        priority: (n,) float64, the smaller the better: the rank, minus the score, or the place in the file (of a truth
            file always this).
        lines: (n,) int64, 1-based line of every row.
    """

    path: Path
    users: NDArray[np.object_]
    items: NDArray[np.object_]
    priority: NDArray[np.float64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)


def read_truth(path: str | Path) -> PairFile:
    """Read the true pairs, of which no number is used. Repeated pairs are allowed, as published test files hold some.

    Raises:
        UserError: the file is missing, empty, truncated or no text, or a row is bad; names file and line.
    """
    return _read(Path(path), numbers=False)


def read_recommendations(path: str | Path) -> PairFile:
    """Read recommended pairs: with a ``rank`` column (1 is best), a ``score`` column (high is best) or in file order.

    Raises:
        UserError: as :func:`read_truth`; also where a pair is repeated.
    """
    pairs = _read(Path(path), numbers=True)
    import pandas as pd

    repeated = pd.DataFrame({"user": pairs.users, "item": pairs.items}).duplicated().to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        raise UserError(
            f"{pairs.path}, line {pairs.lines[row]}: item {pairs.items[row]!r} was recommended to user "
            f"{pairs.users[row]!r} before; a pair may appear once."
        )
    return pairs


def evaluate_files(
    recommendations: str | Path,
    truth: str | Path,
    topk: Sequence[int],
    metrics: Sequence[str] = ("recall", "ndcg"),
    *,
    train: str | Path | None = None,
    masked: Sequence[str | Path] = (),
    keep_unseen_users: bool = True,
    drop_masked_truth: bool = False,
) -> RankingResult:
    """Measure a file of recommendations against a file of true pairs.

    Equal scores or ranks keep the order of the file. A user in the truth without recommendations counts as zeros; users
    recommended to who are not in the truth are ignored. A list shorter than a cut-off has no further hits.

    Args:
        recommendations: see :func:`read_recommendations`.
        truth: see :func:`read_truth`.
        topk: cut-offs.
        metrics: names as in :func:`recdenoise.ranking.evaluate`.
        train: training pairs; with them users and items unseen in training are counted, and warm and cold apart.
        masked: files of pairs that the system could not recommend (train, validation).
        keep_unseen_users: whether users without a training pair count in the mean (``False`` needs ``train``).
        drop_masked_truth: whether true pairs in ``masked`` are forgotten (the clean protocol).

    Returns:
        The measures; ``counts`` holds ``users_without_recommendations``, ``lists_shorter_than_k`` (among users in the
        mean, for the largest k; those without any included), ``users_ignored`` (not in the truth) and
        ``repeated_truth``; ``user_tokens`` names the users.

    Raises:
        UserError: a bad file, an unknown metric or a bad cut-off.
    """
    deepest = max(k for ks in plan_metrics(metrics, topk).values() for k in ks)
    if drop_masked_truth and not masked:
        raise UserError("Dropping masked true pairs needs the files of masked pairs (train, validation).")
    listed, wanted = read_recommendations(recommendations), read_truth(truth)
    hidden = [read_truth(path) for path in masked]
    trained = [read_truth(train)] if train is not None else []
    user_codes, user_names = _codes([pairs.users for pairs in (wanted, listed, *hidden, *trained)])
    item_codes, item_names = _codes([pairs.items for pairs in (wanted, listed, *hidden, *trained)])
    sets = [
        Interactions.from_pairs(torch.from_numpy(users), torch.from_numpy(items), len(user_names), len(item_names))
        for users, items in zip(user_codes, item_codes, strict=True)
    ]
    # The truth was numbered first, so its users are 0 to n - 1 and the others follow.
    n = int((sets[0].counts() > 0).sum())
    lists = _lists(user_codes[1], item_codes[1], listed.priority, n, deepest)
    result = evaluate_lists(
        lists,
        torch.arange(n),
        sets[0],
        topk=topk,
        metrics=metrics,
        mask=sets[2].union(*sets[3 : 2 + len(hidden)]) if hidden else None,
        train=sets[-1] if trained else None,
        keep_unseen_users=keep_unseen_users,
        drop_masked_truth=drop_masked_truth,
    )
    measured = lists[result.users]
    return replace(
        result,
        counts={
            "users_without_recommendations": int((measured[:, 0] < 0).sum()),
            "lists_shorter_than_k": int((measured[:, -1] < 0).sum()),
            "users_ignored": int((sets[1].counts()[n:] > 0).sum()),
            "repeated_truth": sets[0].n_duplicates,
        },
        user_tokens=tuple(user_names[result.users.numpy()]),
    )


def _codes(columns: Sequence[NDArray[np.object_]]) -> tuple[list[NDArray[np.int64]], NDArray[np.object_]]:
    """Number the tokens of several columns together, in order of appearance."""
    import pandas as pd

    codes, names = pd.factorize(np.concatenate(columns))
    ends = np.cumsum([len(column) for column in columns])
    return np.split(codes.astype(np.int64), ends[:-1]), names


def _lists(
    users: NDArray[np.int64], items: NDArray[np.int64], priority: NDArray[np.float64], n_users: int, k: int
) -> torch.Tensor:
    """(n_users, k) lists from rows in any order; ties in priority keep the order of the rows."""
    inside = users < n_users
    users, items, priority = users[inside], items[inside], priority[inside]
    order = np.lexsort((priority, users))
    users, items = users[order], items[order]
    place = np.arange(len(users)) - np.searchsorted(users, users)
    fits = place < k
    lists = torch.full((n_users, k), -1, dtype=torch.int64)
    lists[torch.from_numpy(users[fits]), torch.from_numpy(place[fits])] = torch.from_numpy(items[fits])
    return lists


def _read(path: Path, *, numbers: bool) -> PairFile:
    """The pairs of a file, with or without what its numbers say."""
    text = _text(path)
    first = text.partition("\n")[0]
    separator = next((mark for mark in ("\t", ",") if mark in first), None)
    if separator is None:
        raise UserError(f"{path}, line 1: expected user and item separated by a tab or a comma, found {first[:60]!r}.")
    frame = _frame(path, text, separator, _cells(path, first, separator))
    where = _header(path, [str(cell) for cell in frame.iloc[0]])
    start = 1
    if where is None:
        where, start = {"user": 0, "item": 1, "score": 2}, 0
        if frame.shape[1] - 1 > 3:
            raise UserError(
                f"{path}, line 1: without a header a file has 2 or 3 columns (user, item, number), not "
                f"{frame.shape[1] - 1}; a header names the columns user, item, and rank or score."
            )
        if frame.shape[1] - 1 == 2:
            del where["score"]
        elif not numbers and not _is_number(frame.iat[0, 2]):
            # No number is used, but words here say that line 1 is a header of other names, not a pair.
            raise UserError(
                f"{path}, line 1: {frame.iat[0, 2]!r} is no number; a header names the columns user and item."
            )
    if not numbers:
        where = {role: where[role] for role in ("user", "item")}
    frame = frame.iloc[start:]
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty:
        raise UserError(f"{path} holds no pair.")
    return _pairs(path, frame, where)


def _text(path: Path) -> str:
    """The whole file as text, each line ended by a newline alone, as files of other systems may not be."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged or truncated gzip file: {error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not text.strip():
        raise UserError(f"{path} is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cells(path: Path, line: str, separator: str) -> list[str]:
    """The cells of a line by the rules that :func:`_frame` has for all lines."""
    if separator == "\t":
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{path}, line 1 cannot be read as a row of a table: {error}.") from None


def _is_number(text: str) -> bool:
    """Whether a cell is a number or empty."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _frame(path: Path, text: str, separator: str, first: list[str]) -> pd.DataFrame:
    """All rows as strings, indexed from 0 by line, with one column more than line 1 has, for what is too much."""
    import pandas as pd

    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,
            names=list(range(len(first) + 1)),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skip_blank_lines=False,
            quoting=csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE,
        )
    except pd.errors.ParserError as error:
        message = str(error)
        if found := re.search(r"line (\d+), saw (\d+)", message):
            raise _too_wide(path, int(found[1]), len(first)) from None
        if found := re.search(r"EOF inside string starting at row (\d+)", message):
            raise UserError(f"{path}, line {int(found[1]) + 1}: a quotation mark is never closed.") from None
        raise UserError(f"{path} cannot be read as a table: {message.strip()}") from None
    if separator == "," and '"' in text:
        for column in frame.columns:
            if (broken := frame[column].str.contains("\n", regex=False).to_numpy()).any():
                raise UserError(
                    f"{path}, line {int(broken.argmax()) + 1}: a quoted value runs over the end of the line."
                )
    # After the quotation marks: one that is open at the end of line 1 hides how many columns that has.
    if (extra := (frame[len(first)] != "").to_numpy()).any():
        raise _too_wide(path, int(extra.argmax()) + 1, len(first))
    return frame


def _too_wide(path: Path, line: int, expected: int) -> UserError:
    return UserError(f"{path}, line {line}: more than the {expected} columns of line 1.")


def _header(path: Path, cells: list[str]) -> dict[str, int] | None:
    """Column numbers by role when the cells are a header, ``None`` when they are data."""
    names = [cell.strip().lower().partition(":")[0] for cell in cells]
    where: dict[str, int] = {}
    for role, accepted in _COLUMNS.items():
        found = next((name for name in accepted if name in names), None)
        if found is not None:
            where[role] = names.index(found)
    if "user" in where and "item" in where:
        return where
    if "user" in where or "item" in where:
        raise UserError(f"{path}, line 1: a header must name both a user and an item column, not only {cells!r}.")
    return None


def _pairs(path: Path, frame: pd.DataFrame, where: dict[str, int]) -> PairFile:
    """Check every row and take the columns out."""
    import pandas as pd

    lines = frame.index.to_numpy(dtype=np.int64) + 1
    columns: dict[str, NDArray[np.object_]] = {}
    for role, column in where.items():
        columns[role] = frame[column].to_numpy(dtype=object)
        if (missing := columns[role] == "").any():
            raise UserError(f"{path}, line {lines[missing.argmax()]}: the {role} is missing.")
    priority = np.arange(len(frame), dtype=np.float64)
    for role, sign in (("score", -1.0), ("rank", 1.0)):  # the rank last: it wins where a file has both
        if role not in columns:
            continue
        numbers = pd.to_numeric(pd.Series(columns[role]), errors="coerce").to_numpy(dtype=np.float64)
        if (bad := ~np.isfinite(numbers)).any():
            row = int(bad.argmax())
            raise UserError(f"{path}, line {lines[row]}: the {role} {columns[role][row]!r} is not a finite number.")
        priority = sign * numbers
    return PairFile(path, columns["user"], columns["item"], priority, lines)
