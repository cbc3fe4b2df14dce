"""Data sets made from others, by name: ``KIND-BASE:VALUE``, with further options after commas.

``framed-cifar10:v2``, ``framed-mine.npz:v4,test_bias=uniform``. The base is any name, ``.npz`` or folder that
:func:`vision.data.load` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recdenoise.errors import UserError, unknown_name
from vision.data import frames
from vision.data.images import ImageData

Options = Mapping[str, Any]
Build = Callable[[ImageData, str, str, Options], ImageData]
"""From a part of the base, the value, the part's name and the options."""


@dataclass(frozen=True)
class Kind:
    """One way to make a data set from another.

    Attributes:
        values: shown where a value is missing.
        options: name -> what turns the text into the value.
        build: makes a part.
        check: refuses a value before any data is read.
    """

    values: str
    options: Mapping[str, Callable[[str], Any]]
    build: Build
    check: Callable[[str], None]


def _frame(data: ImageData, value: str, split: str, options: Options) -> ImageData:
    return frames.framed(data, value, split, **options)


def _check_frame(value: str) -> None:
    if value not in frames.VERSIONS:
        raise unknown_name("version of framed images", value, frames.VERSIONS)


KINDS: dict[str, Kind] = {
    "framed": Kind("v1 to v4", {"test_bias": str, "seed": int, "width": int}, _frame, _check_frame),
}
"""Every kind by the word that a name begins with."""


@dataclass(frozen=True)
class Derived:
    """A name, taken apart.

    Attributes:
        kind: of :data:`KINDS`.
        base: what it is made from.
        value: version or ratio.
        options: further ones.
    """

    kind: str
    base: str
    value: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The whole name again."""
        more = "".join(f",{key}={value}" for key, value in self.options.items())
        return f"{self.kind}-{self.base}:{self.value}{more}"

    def build(self, data: ImageData, split: str) -> ImageData:
        """The part of the set that is made from this part of the base. Raises ``UserError``."""
        made = KINDS[self.kind].build(data, self.value, split, self.options)
        return replace(made, name=self.name)


def parse(text: str) -> Derived | None:
    """A name of such a set, or ``None`` where it is none.

    Raises:
        UserError: the kind is one of these, and the rest is wrong.
    """
    kind, dash, rest = text.partition("-")
    kind = kind.lower()
    if kind not in KINDS or not dash:
        return None
    front, *assignments = rest.split(",")
    base, colon, value = front.rpartition(":")
    if not colon or not base or not value:
        raise UserError(
            f"{text!r} does not say which: {kind}-BASE:VALUE, with {KINDS[kind].values} as the value, for example "
            f"{EXAMPLES[kind]}."
        )
    value = value.lower()
    KINDS[kind].check(value)
    return Derived(kind, base, value, _options(text, kind, assignments))


EXAMPLES = {"framed": "framed-cifar10:v2"}


def _options(text: str, kind: str, assignments: list[str]) -> dict[str, Any]:
    known = KINDS[kind].options
    options: dict[str, Any] = {}
    for each in assignments:
        name, equals, value = each.partition("=")
        if name not in known:
            raise unknown_name(f"option of {kind} images", name, known)
        try:
            options[name] = known[name](value)
        except ValueError:
            equals = ""
        if not equals or not value:
            raise UserError(f"{text!r}: {name} must read {name}=VALUE, and the value of seed or width is a number.")
    return options


def absolute(text: str) -> str:
    """The name with the path of its base, where that is a file or a folder, from the root on."""
    found = parse(text)
    if found is None:
        return str(Path(text).resolve()) if Path(text).exists() else text
    return replace(found, base=absolute(found.base)).name


def base_of(text: str) -> str:
    """The set at the bottom: ``text`` itself where it is made from no other."""
    found = parse(text)
    return text if found is None else base_of(found.base)


def title(text: str) -> str:
    """A name for people: without the folder and the suffix of a file."""
    found = parse(text)
    return Path(text).stem if found is None else replace(found, base=title(found.base)).name


def slug(text: str) -> str:
    """A name for a folder: :func:`title` without what file systems do not like."""
    return title(text).translate(str.maketrans(":,=", "---"))
