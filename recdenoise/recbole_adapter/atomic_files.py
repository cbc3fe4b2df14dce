"""RecBole's .inter files, looked at before RecBole reads them: it fills or drops what a bad row lacks and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recdenoise.errors import UserError

TYPES = ("token", "token_seq", "float", "float_seq")
_BLOCK = 1 << 24


def inter_files(config: Any) -> list[Path]:
    """The interaction files of a configuration that are there; RecBole may yet download one that is not."""
    folder, name = Path(config["data_path"]), config["dataset"]
    parts = [f".{part}" for part in config["benchmark_filename"] or ()] or [""]
    paths = [folder / f"{name}{part}.inter" for part in parts]
    if config["benchmark_filename"]:
        for path in paths:
            if not path.is_file():
                raise UserError(f"There is no file {path}, though benchmark_filename names it.")
    return [path for path in paths if path.is_file()]


def check_inter_files(config: Any) -> None:
    """Check header and number of columns of every interaction file.

    Args:
        config: RecBole's.

    Raises:
        UserError: a file is missing, empty or no text, its header is none, or a row has too many or too few columns;
            names file and line.
    """
    separator = str(config["field_separator"] or "\t").encode()
    for path in inter_files(config):
        try:
            header = read_header(path, separator)
            wanted = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]]
            missing = [name for name in wanted if name not in header]
            if missing:
                raise UserError(f"{path}, line 1: the header names no {' and no '.join(missing)}, only {list(header)}.")
            line = bad_row(path, separator, len(header))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
        if line is not None:
            raise UserError(f"{path}, line {line}: it does not have the {len(header)} columns of line 1.")


def read_header(path: Path, separator: bytes) -> dict[str, str]:
    """Names and types of a file's columns. Raises ``UserError`` where line 1 is no header."""
    with path.open("rb") as file:
        first = file.readline().rstrip(b"\r\n")
    if not first:
        raise UserError(f"{path} is empty.")
    try:
        cells = [cell.decode("utf-8").rpartition(":") for cell in first.split(separator)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    for name, _, kind in cells:
        if not name or kind not in TYPES:
            shown = first[:60].decode("utf-8", "replace")
            raise UserError(
                f"{path}, line 1: a header such as user_id:token and item_id:token is due, separated by {separator!r}, "
                f"not {shown!r}."
            )
    return {name: kind for name, _, kind in cells}


def bad_row(path: Path, separator: bytes, columns: int) -> int | None:
    """The first line that has another number of columns, 1-based, or ``None``; blank lines do not count.

    A file with quotation marks is passed over: a quoted cell may hold anything.
    """
    line, rest = 1, b""
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK):
            if b'"' in chunk:
                return None
            chunk = rest + chunk
            cut = chunk.rfind(b"\n") + 1
            found = _bad_row(chunk[:cut], separator, columns)
            if found is not None:
                return line + found
            line += chunk.count(b"\n")
            rest = chunk[cut:]
    found = _bad_row(rest + b"\n", separator, columns) if rest else None
    return None if found is None else line + found


def _bad_row(block: bytes, separator: bytes, columns: int) -> int | None:
    """The first bad line among whole lines, 0-based."""
    values = np.frombuffer(block.replace(b"\r\n", b"\n"), dtype=np.uint8)
    ends = np.flatnonzero(values == ord("\n"))
    places = np.flatnonzero(values == separator[0])  # longer separators are RecBole's to judge
    counts = np.diff(np.searchsorted(places, ends), prepend=0)
    lengths = np.diff(ends, prepend=-1) - 1
    bad = np.flatnonzero((counts != columns - 1) & (lengths > 0)) if len(separator) == 1 else ends[:0]
    return int(bad[0]) if len(bad) else None


def explain(config: Any, error: Exception, dataset: Any = None) -> UserError:
    """One sentence for what RecBole died of: the row that is no number, the split that is empty, else its own words.

    Args:
        config: RecBole's.
        error: what RecBole raised while it read or split the data.
        dataset: the dataset, where reading it went well.
    """
    name = config["dataset"]
    separator = str(config["field_separator"] or "\t").encode()
    for path in inter_files(config):
        line = _not_a_number(path, separator)
        if line is not None:
            return UserError(f"{path}, line {line}: a column of type float holds what is no number.")
    if dataset is not None:
        split = config["eval_args"]["split"]
        shares = split.get("RS") if isinstance(split, dict) else None
        if shares and not float(shares[0]):
            return UserError(f"The train split of {name!r} is empty: eval_args.split gives it {shares[0]} of the data.")
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"RecBole cannot {'read' if dataset is None else 'split'} the data set {name!r}: {said}")


def _not_a_number(path: Path, separator: bytes) -> int | None:
    """The first line with a word in a float column, 1-based."""
    header = read_header(path, separator)
    floats = [place for place, kind in enumerate(header.values()) if kind == "float"]
    with path.open("rb") as file:
        next(file)
        for line, row in enumerate(file, 2):
            cells = row.rstrip(b"\r\n").split(separator)
            for place in floats:
                try:
                    float(cells[place] or 0)
                except ValueError:
                    return line
                except IndexError:
                    break
    return None
