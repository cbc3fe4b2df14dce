"""Tables of a method's options, from its config dataclass: types, defaults and the docstrings under the fields.

``python -m tests.option_tables`` writes them into docs/methods and docs/vision-methods between their two markers;
``test_docs.py`` fails when a page is not up to date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from pathlib import Path

from recdenoise import denoisers
from recdenoise.denoisers import DenoiserConfig
from recdenoise.options import describe
from vision import methods

DOCS = Path(__file__).parent.parent / "docs"
TABLES = {"methods": denoisers.get, "vision-methods": methods.get}
"""Folders of pages, and where the names on them are looked up."""
MARKED = re.compile(r"<!-- options: (?P<name>\w+) -->\n.*?<!-- end of options -->", re.DOTALL)


def field_docs(cls: type) -> dict[str, str]:
    """The string under every field of a dataclass, its bases included, as one line each."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs


def spelled(default: object) -> str:
    """A default as YAML spells it."""
    words = {None: "null", True: "true", False: "false"}
    return words[default] if default is None or isinstance(default, bool) else str(default)


def options_table(config: type[DenoiserConfig]) -> str:
    """The Markdown table of one config class, the method's own options first."""
    hints, docs = typing.get_type_hints(config), field_docs(config)
    common = [field.name for field in dataclasses.fields(DenoiserConfig)]
    fields = sorted(dataclasses.fields(config), key=lambda field: field.name in common)
    lines = ["| option | default | takes | meaning |", "|---|---|---|---|"]
    for field in fields:
        meaning = docs[field.name].replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{spelled(field.default)}` | {describe(hints[field.name])} | {meaning} |")
    return "\n".join(lines)


def method_pages() -> list[Path]:
    """Pages of single methods, for pairs and for images."""
    return sorted(p for folder in TABLES for p in (DOCS / folder).glob("*.md") if p.name != "README.md")


def with_tables(path: Path) -> str:
    """A page's text with every marked table as the code has it."""
    get = TABLES[path.parent.name]

    def block(match: re.Match[str]) -> str:
        table = options_table(get(match["name"]).Config)
        return f"<!-- options: {match['name']} -->\n{table}\n<!-- end of options -->"

    return MARKED.sub(block, path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in method_pages():
        page.write_text(with_tables(page), encoding="utf-8")
