"""A table of interactions as text, plain or gzipped, read in blocks: mistakes name the file and the line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_recipes.errors import RecipeError, because

BLOCK_ROWS = 200_000
"""Rows that are held in memory at a time."""
_LONGEST_CELL = 1 << 20
_SEPARATORS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}


@dataclass(frozen=True)
class Table:
    """Where the rows are and which columns matter.

    Attributes:
        path: a text file with a header line, perhaps gzipped.
        user, item: columns of the ids.
        time: column of the time, a number or an ISO date, or ``None``.
        numbers: further columns, all of numbers.
        separator: one character.
        encoding: of the text.
    """

    path: Path
    user: str
    item: str
    time: str | None = None
    numbers: tuple[str, ...] = ()
    separator: str = ","
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Block:
    """Some rows in order. ``users`` and ``items`` are text, "" where a cell is empty; numbers are NaN there."""

    users: list[str]
    items: list[str]
    times: np.ndarray | None
    numbers: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.users)


def read_blocks(table: Table, rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Read a table from its start to its end; blank lines do not count.

    Args:
        table: what to read.
        rows: in a block, at most.

    Raises:
        RecipeError: no such file, a broken gzip stream, another encoding, a missing column, a row with too many or too
            few cells, a quotation mark that is never closed, a cell that is no number or no date, numbers beside dates
            in the column of the time: names the file and the line.
    """
    with _opened(table) as text:
        records = _records(table, text)
        _, header = next(records, (0, None))
        if header is None:
            raise RecipeError(f"{table.path} is empty.")
        places = _places(table, header)
        clock = _Clock(table)
        held: list[list[str]] = []
        lines: list[int] = []
        for line, cells in records:
            if not cells:
                continue
            if len(cells) != len(header):
                raise RecipeError(f"{table.path}, line {line}: {len(cells)} cells where the header has {len(header)}.")
            held.append(cells)
            lines.append(line)
            if len(held) == rows:
                yield _block(table, places, clock, held, lines)
                held, lines = [], []
        if held:
            yield _block(table, places, clock, held, lines)


def _records(table: Table, text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record ends, and its cells; a blank line has none."""
    # Not strict, csv would take all that follows an open quotation mark for one cell, up to the end of the file.
    reader = csv.reader(text, delimiter=table.separator, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RecipeError(
                f"{table.path}, line {first}: the row that begins here cannot be read ({error}); perhaps a quotation "
                "mark is never closed."
            ) from error
        yield reader.line_num, cells


@contextmanager
def _opened(table: Table) -> Iterator[io.TextIOBase]:
    """The table's text; whatever goes wrong while it is read becomes one sentence."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=table.encoding)  # base64 is a codec, too, but none of text
    except LookupError:
        raise RecipeError(f"There is no encoding {table.encoding!r}; for example utf-8, latin-1, utf-16.") from None
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        if table.path.is_dir():
            raise RecipeError(f"{table.path} is a folder; give the table itself.")
        with table.path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            encoding = "utf-8-sig" if table.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else table.encoding
            with io.TextIOWrapper(stream, encoding=encoding, newline="") as text:  # type: ignore[arg-type]
                yield text
    except FileNotFoundError:
        raise RecipeError(f"There is no file {table.path}.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecipeError(f"{table.path} is a gzip file that is cut short or broken ({error}).") from error
    except UnicodeError as error:
        raise RecipeError(
            f"{table.path} is not {table.encoding} text ({getattr(error, 'reason', error)}); name its encoding with "
            "--encoding, for example latin-1 or utf-16."
        ) from error
    except OSError as error:
        raise RecipeError(f"Cannot read {table.path}: {because(error)}.") from error
    finally:
        csv.field_size_limit(limit)


def _places(table: Table, header: Sequence[str]) -> dict[str, int]:
    """Column -> its place."""
    names = [name.strip() for name in header]
    wanted = [table.user, table.item, *([table.time] if table.time else []), *table.numbers]
    missing = [name for name in wanted if name not in names]
    if missing:
        other = [s for s in _SEPARATORS if s != table.separator and len(names) == 1 and s in names[0]]
        hint = f" It looks separated by {_SEPARATORS[other[0]]}: give --sep." if other else ""
        shown = ", ".join(names)
        raise RecipeError(
            f"{table.path}, line 1: there is no column {' and no '.join(map(repr, missing))}; "
            f"the columns are {shown if len(shown) <= 200 else shown[:197] + '...'}.{hint}"
        )
    for name in wanted:
        if names.count(name) > 1:
            raise RecipeError(f"{table.path}, line 1: two columns are called {name!r}.")
    return {name: names.index(name) for name in wanted}


def _block(table: Table, places: dict[str, int], clock: _Clock, held: list[list[str]], lines: list[int]) -> Block:
    def column(name: str) -> list[str]:
        place = places[name]
        return [cells[place].strip() for cells in held]

    times = None if table.time is None else clock.read(column(table.time), lines)
    numbers = {name: _numbers(table, name, column(name), lines) for name in table.numbers}
    return Block(column(table.user), column(table.item), times, numbers)


def _numbers(table: Table, name: str, cells: list[str], lines: list[int]) -> np.ndarray:
    """A column as float64, NaN where a cell is empty."""
    try:
        return np.array([cell or "nan" for cell in cells], dtype=np.float64)
    except ValueError:
        for cell, line in zip(cells, lines, strict=True):
            try:
                float(cell or "nan")
            except ValueError:
                raise RecipeError(f"{table.path}, line {line}: {name} is {cell[:60]!r}, which is no number.") from None
        raise


class _Clock:
    """Reads the column of the time block by block: all of it holds numbers, or all of it dates."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.dates: bool | None = None
        """What the column holds; None before its first row."""

    def read(self, cells: list[str], lines: list[int]) -> np.ndarray:
        """A block's cells as ``(n,)`` float64; every row needs one. Dates become seconds since 1970, UTC.

        Args:
            cells: ``n`` texts.
            lines: where they stand.

        Raises:
            RecipeError: a cell that is no time, a number among dates or a date among numbers: names the line.
        """
        values = np.empty(len(cells))
        try:
            values[:] = np.array(cells, dtype=np.float64)
        except ValueError:
            known: dict[str, float] = {}  # dates repeat, and reading one costs more than looking it up
            for k, cell in enumerate(cells):
                if cell not in known:
                    known[cell] = self._time(cell, lines[k])
                values[k] = known[cell]
        else:
            self._hold(False, cells[0], lines[0])
        unusable = np.flatnonzero(~np.isfinite(values))
        if len(unusable):
            k = int(unusable[0])
            raise RecipeError(f"{self._place(lines[k])} is {cells[k]!r}, which is no time.")
        return values

    def _time(self, cell: str, line: int) -> float:
        try:
            number = float(cell)
        except ValueError:
            pass
        else:
            self._hold(False, cell, line)
            return number
        try:
            moment = datetime.fromisoformat(cell)
        except ValueError:
            raise RecipeError(
                f"{self._place(line)} is {cell[:60]!r}, which is neither a number nor an ISO date."
            ) from None
        self._hold(True, cell, line)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def _hold(self, date: bool, cell: str, line: int) -> None:
        """Note what the column holds, or refuse a cell of the other kind: 20200103 beside 2020-01-02 is no second."""
        if self.dates is None:
            self.dates = date
        if self.dates != date:
            kinds = ("a date", "numbers") if date else ("a number", "dates")
            raise RecipeError(
                f"{self._place(line)} is {cell[:60]!r}, {kinds[0]} where the rows before hold {kinds[1]}."
            )

    def _place(self, line: int) -> str:
        return f"{self.table.path}, line {line}: {self.table.time}"
