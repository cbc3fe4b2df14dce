"""What a recipe is: a description of public data and a function from the raw file to folders that the backends read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folder:
    """The finished contents of one protocol's folder, not yet on disk."""

    protocol: str
    """``paper`` (as published) or ``clean`` (disjoint splits, reachable positives); the folder above the dataset's."""
    dataset: str
    """Name of the dataset and of its folder: RecBole wants the two to be equal."""
    files: Mapping[str, bytes]
    """Bytes of every file by name, ``manifest.json`` excepted."""
    manifest: Mapping[str, Any]
    """What :func:`data_recipes.manifest.describe` returned; the files' sha256 are added when the folder is written."""


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
    build: Callable[[Path | None], list[Folder]]
    """From a file or folder with the raw data (None: the recipe's own place) to one :class:`Folder` per protocol."""
