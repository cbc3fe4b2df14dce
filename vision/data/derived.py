"""Data sets made from others, by name: ``KIND-BASE:VALUE``, with further options after commas.

``framed-cifar10:v2``, ``framed-mine.npz:v4,test_bias=uniform``, ``colored-mnist:0.99``,
``corrupted-cifar10-type1:0.95,seed=1``. The base is any name, ``.npz`` or folder that
:func:`vision.data.load` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recdenoise.errors import UserError, unknown_name
from vision.data import biased, frames
from vision.data.corruptions import TYPES
from vision.data.images import ImageData
from vision.data.stored import once

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Derived:
    """A name, taken apart.

    Attributes:
        kind: of :data:`KINDS`.
        base: what it is made from.
        variant: of the kind, such as ``type1``; empty where the kind has none.
        value: version or share, in its usual form.
        options: further ones.
    """

    kind: str
    base: str
    variant: str
    value: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The whole name again."""
        variant = f"-{self.variant}" if self.variant else ""
        more = "".join(f",{key}={value}" for key, value in self.options.items())
        return f"{self.kind}-{self.base}{variant}:{self.value}{more}"

    def build(self, data: ImageData, split: str, cache: Path) -> ImageData:
        """The part of the set that is made from this part of the base; what takes long is kept under ``cache``.

        Raises:
            UserError: a base that it cannot be made from.
        """
        kind = KINDS[self.kind]
        if not kind.stored:
            return replace(kind.build(self, data, split), name=self.name)
        # What is no training part is the same at every share, and is kept once for all.
        kept = self if split == "train" else replace(self, value="all")
        key = f"{kept.kind} {kept.variant} {kept.value} {sorted(kept.options.items())}"
        made = once(cache / slugged(kept), split, data, key, lambda: kind.build(self, data, split))
        return replace(made, name=self.name)


@dataclass(frozen=True)
class Kind:
    """One way to make a data set from another.

    Attributes:
        form: how such a name reads.
        example: one that does.
        options: name -> what turns the text into the value.
        value: brings a value into its usual form, or refuses it before any data is read.
        build: makes a part.
        variants: of which the base's name ends in one.
        stored: whether parts are kept on disk.
    """

    form: str
    example: str
    options: Mapping[str, Callable[[str], Any]]
    value: Callable[[str], str]
    build: Callable[[Derived, ImageData, str], ImageData]
    variants: tuple[str, ...] = ()
    stored: bool = False


def _version(text: str) -> str:
    if text not in frames.VERSIONS:
        raise unknown_name("version of framed images", text, frames.VERSIONS)
    return text


def _share(text: str) -> str:
    return f"{biased.ratio(text):g}"


def _frame(name: Derived, data: ImageData, split: str) -> ImageData:
    return frames.framed(data, name.value, split, **name.options)


def _color(name: Derived, data: ImageData, split: str) -> ImageData:
    return biased.colored(data, float(name.value), split, **name.options)


def _corrupt(name: Derived, data: ImageData, split: str) -> ImageData:
    return biased.corrupted(data, name.variant, float(name.value), split, **name.options)


KINDS: dict[str, Kind] = {
    "framed": Kind(
        "framed-BASE:VERSION, versions v1 to v4",
        "framed-cifar10:v2",
        {"test_bias": str, "seed": int, "width": int},
        _version,
        _frame,
    ),
    "colored": Kind(
        "colored-BASE:SHARE, the share of bias-aligned images",
        "colored-mnist:0.99",
        {"seed": int, "severity": int},
        _share,
        _color,
    ),
    "corrupted": Kind(
        "corrupted-BASE-TYPE:SHARE, types type1 and type2, the share of bias-aligned images",
        "corrupted-cifar10-type1:0.95",
        {"seed": int},
        _share,
        _corrupt,
        tuple(TYPES),
        stored=True,
    ),
}
"""Every kind by the word that a name begins with."""


def parse(text: str) -> Derived | None:
    """A name of such a set, or ``None`` where it is none.

    Raises:
        UserError: the kind is one of these, and the rest is wrong.
    """
    word, dash, rest = text.partition("-" if "_" not in text.partition("-")[0] else "_")
    word = word.lower()
    if word not in KINDS or not dash:
        return None
    kind = KINDS[word]
    front, *assignments = rest.split(",")
    base, _, value = front.rpartition(":")
    variant = ""
    if kind.variants:
        base, _, variant = base.rpartition("-")
    if not base or not value or variant.lower() not in (kind.variants or ("",)):
        raise UserError(f"{text!r} is no name of {word} images: it must read {kind.form}; for example {kind.example}.")
    return Derived(word, base, variant.lower(), kind.value(value.lower()), _options(text, word, assignments))


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
            raise UserError(f"{text!r}: {name} must read {name}=VALUE, and seed, width and severity are whole numbers.")
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
    return _plain(title(text))


def slugged(name: Derived) -> str:
    """:func:`slug` of a name that was taken apart."""
    return _plain(replace(name, base=title(name.base)).name)


def _plain(text: str) -> str:
    return text.translate(str.maketrans(":,=", "---"))
