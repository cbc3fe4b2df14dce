"""What was published: numbers as CSV, and one YAML file a table that says which runs answer to them."""

from __future__ import annotations

import csv
import io
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from recdenoise.errors import unknown_name

Key = tuple[str, str, str, str]
"""Data set, model, method's title, metric such as ``recall@20``."""


def _folder() -> Traversable:
    return resources.files(__name__)


def tables() -> list[str]:
    """Names of the tables that have a file here, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def load_table(name: str) -> dict[str, Any]:
    """The content of a table's file. Raises ``UserError`` for a name without one."""
    if name not in tables():
        raise unknown_name("table", name, tables())
    content = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def load_rows(file: str) -> list[dict[str, str]]:
    """Rows of a CSV file of this folder."""
    return list(csv.DictReader(io.StringIO((_folder() / file).read_text(encoding="utf-8"))))


def load_numbers(file: str, column: str) -> dict[Key, float]:
    """One column of a CSV file whose rows name data set, model, method, metric and cut-off; empty cells left out."""
    return {
        (row["dataset"], row["model"], row["method"], f"{row['metric']}@{row['k']}"): float(row[column])
        for row in load_rows(file)
        if row[column]
    }
