"""What a recipe is: a description of public data and a function from the raw file to folders that the backends read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folder:
    """The finished contents of one protocol's folder, not yet on disk."""

    protocol: str
    """``paper`` (as published) or ``clean`` (disjoint splits, reachable positives); the folder above the dataset's."""
    dataset: str
    """Name of the dataset and of its folder: RecBole wants the two to be equal."""
    files: Mapping[str, bytes | Path]
    """Contents of every file by name, ``manifest.json`` excepted: bytes, or a finished file to move into place."""
    manifest: Mapping[str, Any]
    """What :func:`data_recipes.manifest.describe` returned; the files' sha256 are added when the folder is written."""


@dataclass(frozen=True)
class RawFile:
    """One file of a publisher."""

    name: str
    url: str | None = None
    """Where it can be downloaded; None where no address is known, so that a person has to give it."""
    size: int | None = None
    """Bytes, where known."""
    sha256: str | None = None
    """Of the bytes as published, where known."""
    rows_sha256: str | None = None
    """Of the rows with newline endings, the last one included: a checkout that changed line endings has it too."""


@dataclass(frozen=True)
class Job:
    """What a recipe is asked for."""

    source: Path | None
    """A file or folder with the raw data; None: the recipe's own place."""
    protocols: Sequence[str]
    """Which to build, in this order."""
    work: Callable[[], Path]
    """An empty folder beside the output, for files too large for memory; it is removed afterwards."""
    unpacked: bool = False
    """Whether the source is a folder that an archive was unpacked to."""


@dataclass(frozen=True)
class Recipe:
    """One public dataset: where it comes from, what may be done with it, and how its folders are made."""

    name: str
    """The name people type; also the dataset's name in RecBole."""
    title: str
    url: str
    """The publisher's page."""
    licence: str
    """One sentence: what the publisher allows."""
    citation: str
    protocols: tuple[str, ...]
    """Names of the protocols, in the order in which ``build`` returns them."""
    version: int
    """Raised whenever the same source would give other bytes; part of the manifest."""
    build: Callable[[Job], list[Folder]]
    """From a job to one :class:`Folder` for each of its protocols."""
    files: Mapping[str, Sequence[RawFile]] = field(default_factory=dict)
    """Protocol -> the raw files that it is made from; empty where the recipe has a place of its own."""
    by_hand: str = ""
    """The page where a person gets the files that have no address of their own."""
