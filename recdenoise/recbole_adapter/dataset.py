"""A folder that a recipe built, as tensors: pairs, held-out pairs, the clean test, tokens, ratings."""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import data_recipes
from recdenoise.errors import UserError
from recdenoise.interactions import Interactions
from recdenoise.recbole_adapter.recbole_config import build_config, read_yaml
from recdenoise.recbole_adapter.trainer import training_pairs

PROTOCOLS = ("paper", "clean")
"""``paper``: as published, test and validation overlap where the publisher's files do, unreachable positives count.
``clean``: disjoint splits, only positives that can be ranked, users unseen in training left out."""


def cache_folder() -> Path:
    """Where recipes named on the command line are built: ``RECDENOISE_CACHE``, else ``~/.cache/recdenoise``."""
    return Path(os.environ.get("RECDENOISE_CACHE") or Path.home() / ".cache" / "recdenoise")


def check_protocol(protocol: object) -> str:
    """Return ``protocol`` if there is one of that name. Raises ``UserError`` that lists them."""
    if protocol not in PROTOCOLS:
        raise UserError(f"Unknown protocol {protocol!r}. Valid: {', '.join(PROTOCOLS)}.")
    return str(protocol)


def dataset_name(dataset: str) -> str:
    """What presets call a data set: a recipe's name stays, a folder is asked for its manifests."""
    path = Path(dataset)
    manifests = [path / "manifest.json", *sorted(path.glob("*/*/manifest.json"))] if path.is_dir() else []
    names = {manifest.parent.resolve().name for manifest in manifests if manifest.is_file()}
    return names.pop() if len(names) == 1 else dataset


def default_protocol(dataset: str) -> str:
    """The protocol of a run that names none: ``paper``, or the only one that a built folder has."""
    path = Path(dataset)
    with contextlib.suppress(data_recipes.RecipeError):
        return str(data_recipes.load_manifest(path)["protocol"])  # the folder of one protocol
    folders = [path / protocol for protocol in PROTOCOLS] if path.is_dir() else []
    there = [folder.name for folder in folders if any(folder.glob("*/manifest.json"))]
    return there[0] if there else PROTOCOLS[0]


def raw_folder(dataset: str) -> Path | None:
    """Raw files of a recipe on this machine: ``RECDENOISE_DATA/recsys/<dataset>``, or ``None``."""
    root = os.environ.get("RECDENOISE_DATA")
    folder = Path(root) / "recsys" / dataset if root else None
    return folder if folder is not None and folder.is_dir() else None


def check_dataset(dataset: str, protocol: str) -> None:
    """Refuse, before anything is built or read, a data set that is neither a recipe nor a built folder."""
    if dataset in data_recipes.RECIPES and not Path(dataset).is_dir():
        check_protocol(protocol)
        recipe = data_recipes.find_recipe(dataset)
        if protocol not in recipe.protocols:
            raise UserError(f"The recipe {dataset} has no {protocol} protocol. Valid: {', '.join(recipe.protocols)}.")
        needs_raw = bool(recipe.files) and _cached(dataset, protocol) is None and raw_folder(dataset) is None
        by_hand = [file.name for file in recipe.files.get(protocol, ()) if file.url is None]
        if needs_raw and by_hand:
            raise UserError(_give_raw(dataset, protocol, by_hand))
    else:
        _protocol_folder(dataset, protocol)


def _cached(dataset: str, protocol: str) -> Path | None:
    """The folder that an earlier command built in the cache by this version of the recipe, or ``None``."""
    folder = cache_folder() / dataset / protocol / dataset
    try:
        same = data_recipes.load_manifest(folder)["version"] == data_recipes.find_recipe(dataset).version
    except data_recipes.RecipeError:
        return None
    return folder if same else None


def _build(dataset: str, protocol: str) -> Path:
    """Build one protocol in the cache: from local raw files where they are, else from the recipe's own place."""
    recipe, out = data_recipes.find_recipe(dataset), cache_folder() / dataset
    source = raw_folder(dataset) if recipe.files else None
    if source is not None:
        try:
            return data_recipes.build(dataset, out, source, [protocol])[0]
        except data_recipes.MissingFiles:
            if any(file.url is None for file in recipe.files[protocol]):
                raise
    return data_recipes.build(dataset, out, None, [protocol], downloads=out / "raw")[0]


def _give_raw(dataset: str, protocol: str, by_hand: list[str]) -> str:
    """What to do where a recipe's raw files are not at hand."""
    recipe = data_recipes.find_recipe(dataset)
    return (
        f"The {protocol} protocol of {dataset} needs {' and '.join(by_hand)}, which cannot be downloaded by itself: "
        f"get the files from {recipe.by_hand}, then run recdenoise data build {dataset} --from FOLDER --out data and "
        f"give --dataset data; or put them in recsys/{dataset} of a folder that RECDENOISE_DATA names."
    )


def find_folder(dataset: str, protocol: str) -> Path:
    """The folder of a data set under a protocol, built first where ``dataset`` names a recipe.

    A recipe whose raw files no package carries is looked for in the cache, then made from the files in
    ``RECDENOISE_DATA/recsys/<dataset>``, then from its downloads.

    Args:
        dataset: a recipe's name, the folder that ``recdenoise data build`` wrote, or one protocol's folder inside it.
        protocol: ``paper`` or ``clean``.

    Raises:
        UserError: neither, raw files that are not at hand, or a folder whose files changed since it was built.
    """
    check_dataset(dataset, protocol)
    try:
        if dataset in data_recipes.RECIPES and not Path(dataset).is_dir():
            folder = _cached(dataset, protocol) if data_recipes.find_recipe(dataset).files else None
            if folder is None:
                return _build(dataset, protocol)
        else:
            folder = _protocol_folder(dataset, protocol)
        data_recipes.verify_folder(folder)
    except data_recipes.RecipeError as error:
        raise UserError(str(error)) from error
    return folder.resolve()


def digest_of(folder: Path) -> str:
    """16 hexadecimal digits that change with any file of a built folder, by the hashes that its manifest keeps."""
    files = data_recipes.load_manifest(folder)["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def data_digest(dataset: str, protocol: str) -> str | None:
    """:func:`digest_of` what :func:`find_folder` would find; ``None`` where it would have to be built first.

    Raises:
        UserError: neither a recipe nor a built folder.
    """
    named = dataset in data_recipes.RECIPES and not Path(dataset).is_dir()
    folder = _cached(dataset, protocol) if named else _protocol_folder(dataset, protocol)
    return None if folder is None else digest_of(folder)


def _protocol_folder(dataset: str, protocol: str) -> Path:
    """The folder of one protocol in (or at) the path ``dataset``; its files are not looked at."""
    check_protocol(protocol)
    path = Path(dataset)
    if not path.is_dir():
        close = difflib.get_close_matches(dataset, data_recipes.RECIPES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        valid = ", ".join(data_recipes.RECIPES)
        raise UserError(f"There is no data set {dataset!r}: it is neither a recipe ({valid}) nor a folder.{hint}")
    candidates = [path] if (path / "manifest.json").is_file() else sorted((path / protocol).glob("*/manifest.json"))
    if len(candidates) != 1:
        raise UserError(f"{path} was not built by a recipe: it has no {protocol}/NAME/manifest.json.")
    folder = candidates[0] if candidates[0].is_dir() else candidates[0].parent
    try:
        found = data_recipes.load_manifest(folder)["protocol"]
    except data_recipes.RecipeError as error:
        raise UserError(str(error)) from error
    if found != protocol:
        raise UserError(
            f"{path} holds the {found} protocol; give --protocol {found}, or the folder that holds both protocols."
        )
    return folder


@dataclass(frozen=True)
class SplitData:
    """Everything that training and evaluation read, ids as RecBole numbers them (0 is padding).

    Attributes:
        name, protocol, folder: what was loaded.
        config, dataset: RecBole's, for building models.
        train, valid: ``(users, items)``, ``(n,)`` int64 each.
        truth: the clean test.
        rating: ``(n_train,)`` float ratings of the training rows, NaN where the file has none; or ``None``.
        user_tokens, item_tokens: id -> the publisher's token.
        unknown_test_rows: clean-test rows with a user or item in none of the other files.
    """

    name: str
    protocol: str
    folder: Path
    config: Any
    dataset: Any
    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    truth: Interactions
    rating: Tensor | None
    user_tokens: np.ndarray[Any, Any]
    item_tokens: np.ndarray[Any, Any]
    unknown_test_rows: int

    @property
    def digest(self) -> str:
        """Changes with any file of the folder: what a run keeps of the data that it was trained on."""
        return digest_of(self.folder)

    @property
    def known(self) -> Interactions:
        """Training and validation pairs: what a ranking masks."""
        lists = [Interactions.from_pairs(u, i, self.truth.n_users, self.truth.n_items) for u, i in self.splits]
        return lists[0].union(lists[1])

    @property
    def splits(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Train, valid."""
        return self.train, self.valid

    def user_ids(self, tokens: list[str]) -> Tensor:
        """Ids of users by token. Raises ``UserError`` for a token that the data set does not have."""
        table = self.dataset.field2token_id[self.dataset.uid_field]
        unknown = [token for token in tokens if token not in table or table[token] == 0]
        if unknown:
            some = ", ".join(str(t) for t in self.user_tokens[1:6])
            raise UserError(f"No user {', '.join(map(repr, unknown))} in {self.name}; its users are {some}, ...")
        return torch.tensor([table[token] for token in tokens], dtype=torch.int64)


def load_split(model: str, dataset: str, protocol: str, options: dict[str, Any]) -> SplitData:
    """Load a data set through RecBole.

    Args:
        model: a model's name, for RecBole's configuration.
        dataset: see :func:`find_folder`.
        protocol: ``paper`` or ``clean``.
        options: RecBole options.

    Raises:
        UserError: a folder, file or option that cannot work, or an empty split.
    """
    from recbole.data import create_dataset

    folder = find_folder(dataset, protocol)
    name = folder.name
    described = read_yaml(folder / f"{name}.yaml")
    config = build_config(model, name, None, {"show_progress": False, **options, **described})
    config["data_path"] = str(folder)  # RecBole sends a data set called ml-100k to its own copy
    data = create_dataset(config)
    built = data.build()
    if len(built) != 3:
        raise UserError(f"{folder} must give RecBole a train, a valid and a test file; it gave {len(built)}.")
    for part, split in zip(("train", "valid", "test"), built, strict=True):
        if len(split.inter_feat) == 0:
            raise UserError(f"The {part} split of {folder} is empty.")
    train, valid = (training_pairs(split) for split in built[:2])
    truth, unknown = _clean_test(folder / f"{name}.clean_test.inter", data)
    return SplitData(
        name,
        protocol,
        folder,
        config,
        built[0],
        train,
        valid,
        truth,
        _ratings(folder / f"{name}.train.inter", data, built[0].inter_feat, config["RATING_FIELD"]),
        data.field2id_token[data.uid_field],
        data.field2id_token[data.iid_field],
        unknown,
    )


def _ratings(path: Path, data: Any, feat: Any, field: str) -> Tensor | None:
    """Ratings of the rows that RecBole read from a file, NaN where the file has none: RecBole fills in the mean."""
    if field not in feat.columns:
        return None
    rating: Tensor = feat[field].float()
    cells = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    cells = cells.rename(columns=lambda name: name.partition(":")[0])
    # By pair, not by row: options of RecBole may have left rows out.
    unrated = cells.loc[cells[field] == "", [data.uid_field, data.iid_field]].to_numpy().tolist()
    if not unrated:
        return rating
    keys = torch.tensor([u * data.item_num + i for u, i in _ids(unrated, data)], dtype=torch.int64)
    gaps = torch.isin(feat[data.uid_field] * data.item_num + feat[data.iid_field], keys)
    return None if bool(gaps.all()) else rating.masked_fill(gaps, torch.nan)


def _rows(path: Path, fields: Sequence[str]) -> Iterator[list[str]]:
    """Cells of an atomic file, those of ``fields`` in their order. Raises ``UserError`` that names file and line."""
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\r\n").split("\t")
        names = [column.partition(":")[0] for column in header]
        try:
            places = [names.index(field) for field in fields]
        except ValueError:
            raise UserError(f"{path}, line 1: the header must name {' and '.join(fields)}.") from None
        for number, line in enumerate(file, 2):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != len(header):
                raise UserError(f"{path}, line {number}: {len(cells)} columns where the header has {len(header)}.")
            yield [cells[place] for place in places]


def _ids(pairs: Sequence[Sequence[str]], data: Any) -> list[tuple[int, int]]:
    """Numbers of users and items by their tokens, 0 where no file that RecBole read has them."""
    users, items = data.field2token_id[data.uid_field], data.field2token_id[data.iid_field]
    return [(users.get(user, 0), items.get(item, 0)) for user, item in pairs]


def _clean_test(path: Path, data: Any) -> tuple[Interactions, int]:
    """The clean test's pairs, and how many of its rows name a user or item that no other file has."""
    if not path.is_file():
        raise UserError(f"There is no clean test {path}.")
    ids = _ids(list(_rows(path, (data.uid_field, data.iid_field))), data)
    known = [pair for pair in ids if pair[0] and pair[1]]
    if not known:
        raise UserError(f"The clean test {path} is empty.")
    pairs = torch.tensor(known, dtype=torch.int64)
    truth = Interactions.from_pairs(pairs[:, 0], pairs[:, 1], data.user_num, data.item_num)
    return truth, len(ids) - len(known)
