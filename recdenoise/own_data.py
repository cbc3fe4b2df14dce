"""Copies of a built folder with other training rows: noise injected, suspects left out, weights added.

A copy is a folder as a recipe writes it, with manifest and RecBole configuration, so every command reads it. The same
input gives the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

import data_recipes
from data_recipes.interactions import Interactions, count_splits, totals
from data_recipes.manifest import MANIFEST
from recdenoise import noise
from recdenoise.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

INJECTED = "injected"
"""Column of 0 and 1 in a corrupted set: 1 in the rows that were injected."""
WEIGHT = "weight"
"""Column of an exported set: P(y = 1 | observed)."""
SPLITS = ("train", "valid", "test", "clean_test")


@dataclass(frozen=True)
class InterFile:
    """An atomic file of interactions.

    Attributes:
        types: column -> RecBole's type, in the order of the file.
        rows: every cell as text.
    """

    types: dict[str, str]
    rows: pd.DataFrame

    def to_bytes(self) -> bytes:
        """The file: typed header, tab separated, newline ended."""
        text = io.StringIO()
        text.write("\t".join(f"{name}:{kind}" for name, kind in self.types.items()) + "\n")
        self.rows[list(self.types)].to_csv(
            text, sep="\t", header=False, index=False, lineterminator="\n", quoting=csv.QUOTE_NONE
        )
        return text.getvalue().encode()

    def with_column(self, name: str, values: Sequence[str] | NDArray[Any]) -> InterFile:
        """The same rows with a column of numbers more, or with another one in its place."""
        return InterFile({**self.types, name: "float"}, self.rows.assign(**{name: values}))


def read_inter(path: Path) -> InterFile:
    """Read an atomic file. Raises ``UserError`` where it is missing or no such file."""
    import pandas as pd

    try:
        with path.open(encoding="utf-8") as file:
            cells = [cell.rpartition(":") for cell in file.readline().rstrip("\r\n").split("\t")]
            names = [name for name, _, _ in cells]
            if not all(names) or len(set(names)) != len(names):
                raise UserError(f"{path}, line 1: a header such as user_id:token and item_id:token is due.")
            rows = pd.read_csv(file, sep="\t", names=names, dtype=str, na_filter=False, quoting=csv.QUOTE_NONE)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return InterFile({name: kind for name, _, kind in cells}, rows)


@dataclass(frozen=True)
class BuiltFolder:
    """A protocol's folder of a data set, read and checked against its manifest.

    Attributes:
        path: where it is.
        name: of the data set.
        manifest, config: contents of ``manifest.json`` and of the RecBole configuration.
        remarks: the comment at the configuration's head.
        splits: its files of interactions.
        others: the files of users and items, where there are some.
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    config: dict[str, Any]
    remarks: list[str]
    splits: dict[str, InterFile]
    others: dict[str, bytes]

    @property
    def user(self) -> str:
        """The column of user tokens."""
        return str(self.config["USER_ID_FIELD"])

    @property
    def item(self) -> str:
        """The column of item tokens."""
        return str(self.config["ITEM_ID_FIELD"])


def read_folder(path: Path) -> BuiltFolder:
    """Read the folder of one protocol, ``OUT/<protocol>/<dataset>``.

    Raises:
        UserError: no recipe built it, or its files have changed since.
    """
    try:
        manifest = data_recipes.verify_folder(path)
    except data_recipes.RecipeError as error:
        raise UserError(str(error)) from error
    name = manifest["dataset"]
    text = (path / f"{name}.yaml").read_text(encoding="utf-8")
    remarks = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        remarks.append(line)
    splits = {split: read_inter(path / f"{name}.{split}.inter") for split in SPLITS}
    others = {f: (path / f).read_bytes() for f in manifest["files"] if f in (f"{name}.user", f"{name}.item")}
    return BuiltFolder(path, name, manifest, yaml.safe_load(text), remarks, splits, others)


def corrupted(
    source: BuiltFolder, *, rate: float, kind: str, seed: int, also_valid: bool = False
) -> data_recipes.Folder:
    """A copy whose training file has unobserved pairs among its rows, marked in the column ``injected``.

    They are pairs of users and items of the training file that none of the four files has, and stand behind the
    observed rows, so that RecBole gives users and items the numbers it gives them without the noise. Their ratings are
    0, their time and other labels those of another row of the user.

    Args:
        source: what is copied.
        rate: share of injected rows among the training rows of the copy.
        kind: of :data:`recdenoise.noise.KINDS`.
        seed: everything random follows from it.
        also_valid: corrupt the validation file at the same rate, too, of all its rows; its noise, too, is of users and
            items of the training file.

    Raises:
        UserError: corrupted before, a rate out of range, nothing that the noise could follow, or too few unobserved
            pairs.
    """
    if INJECTED in source.splits["train"].types:
        raise UserError(f"{source.path} was corrupted before; corrupt the data set that it was made from.")
    train = source.splits["train"].rows
    users, n_users = _codes([part.rows[source.user] for part in source.splits.values()], train[source.user])
    items, n_items = _codes([part.rows[source.item] for part in source.splits.values()], train[source.item])
    pairs = [(u, i) for u, i in zip(users, items, strict=True)]
    inside = [(u >= 0) & (i >= 0) for u, i in pairs]
    taken = np.concatenate([u[k] * n_items + i[k] for (u, i), k in zip(pairs, inside, strict=True)])
    splits, counts = dict(source.splits), dict.fromkeys(SPLITS, 0)
    for position, split in enumerate(("train", "valid") if also_valid else ("train",)):
        own_users, own_items = (ids[inside[position]] for ids in pairs[position])
        # Validation rows of users and items that are new there count, though no noise is drawn like them.
        n_rows = len(source.splits[split].rows)
        options: dict[str, Any] = {"rate": rate, "kind": kind, "seed": seed, "key": split}
        try:
            new_users, new_items = noise.inject(own_users, own_items, taken, n_users, n_items, n_rows=n_rows, **options)
        except UserError as error:
            if split == "train":
                raise
            raise UserError(f"In the validation file: {error}") from None
        taken = np.concatenate([taken, new_users * n_items + new_items])
        like = _rows_of_users(pairs[0][0], new_users, noise.uniform_draws(seed, kind, split, "labels"))
        splits[split] = _extended(source, split, like, _distinct(train[source.item])[new_items])
        counts[split] = len(new_users)
    for split, part in splits.items():
        flags = np.r_[np.zeros(len(part.rows) - counts[split], dtype=int), np.ones(counts[split], dtype=int)]
        splits[split] = part.with_column(INJECTED, flags.astype(str))
    facts = {"command": "corrupt", "rate": rate, "kind": kind, "seed": seed, "also_valid": also_valid}
    n_rows, n_valid = (len(splits[split].rows) for split in ("train", "valid"))
    facts |= {"injected": {split: n for split, n in counts.items() if n}, "realised_rate": counts["train"] / n_rows}
    if also_valid:
        facts["realised_rate_valid"] = counts["valid"] / n_valid
    beside = f" and {counts['valid']:,} of the {n_valid:,} validation rows" if also_valid else ""
    note = (
        f"{counts['train']:,} of the {n_rows:,} training rows{beside} were injected (kind {kind}, seed {seed}): "
        f"unobserved pairs, marked by 1 in the column {INJECTED}"
        + (", with rating 0." if source.config.get("RATING_FIELD") in source.splits["train"].types else ".")
    )
    return derived(source, splits, "corrupted", facts, [note], seed)


def exported(
    source: BuiltFolder, p_clean: NDArray[np.floating[Any]], drop: float | None, by: Mapping[str, Any]
) -> data_recipes.Folder:
    """A copy without the training rows that are most likely noise, or with a column of weights.

    Args:
        source: what is copied.
        p_clean: ``(n,)`` P(y = 1 | observed) of every training row, in the order of the file.
        drop: share of the rows to leave out, over all users; ``None`` writes the column ``weight`` instead.
        by: what the probabilities come from, for the manifest.

    Raises:
        UserError: a share out of range, or one that leaves no row out or none in.
    """
    train = source.splits["train"]
    facts: dict[str, Any] = {"command": "export", "by": dict(by)}
    if drop is None:
        # Nine digits tell any two float32 apart.
        part = train.with_column(WEIGHT, [f"{value:.9g}" for value in p_clean.tolist()])
        note = f"The column {WEIGHT} of the training file holds P(y = 1 | observed)."
    else:
        n_gone = dropped_count(len(train.rows), drop)
        keep = np.ones(len(train.rows), dtype=bool)
        keep[np.argsort(p_clean, kind="stable")[:n_gone]] = False
        part = InterFile(train.types, train.rows[keep])
        facts |= {"drop": drop, "dropped": n_gone}
        note = f"The {n_gone:,} training rows of {len(train.rows):,} that were most likely noise were left out."
    return derived(source, {**source.splits, "train": part}, "exported", facts, [note], source.manifest.get("seed"))


def check_share(share: float) -> None:
    """Refuse a share that is not between 0 and 1. Raises ``UserError``."""
    if not 0 < share < 1:
        raise UserError(f"--drop is {share:g}; it must lie between 0 and 1, both excluded.")


def dropped_count(n_rows: int, share: float) -> int:
    """How many rows a share is. Raises ``UserError`` where it is out of range or leaves no row out or none in."""
    check_share(share)
    count = int(n_rows * share + 0.5)
    if count in (0, n_rows):
        raise UserError(
            f"--drop {share:g} of {n_rows} rows is {count}: nothing is left {'out' if not count else 'in'}."
        )
    return count


def derived(
    source: BuiltFolder,
    splits: Mapping[str, InterFile],
    how: str,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    seed: int | None,
) -> data_recipes.Folder:
    """A copy of a folder with other files: counts, hashes of what it was made from, configuration."""
    parts = {split: _interactions(source, file) for split, file in splits.items()}
    counts, overlaps = count_splits(parts)
    old = source.manifest
    digest = hashlib.sha256((source.path / MANIFEST).read_bytes()).hexdigest()
    train = _interactions(source, source.splits["train"])
    manifest = {
        **{key: value for key, value in old.items() if key != "files"},
        "recipe": f"{old['recipe']}, {how}",
        "seed": seed,
        "source": {"sha256": digest, "what": "manifest.json and training rows of the folder copied", **totals(train)},
        "derived": {**facts, "from": {k: old[k] for k in ("recipe", "version", "files", "derived") if k in old}},
        "splits": counts,
        "overlaps": overlaps,
        "notes": [*old.get("notes", ()), *notes],
    }
    files = source.others | {f"{source.name}.{split}.inter": part.to_bytes() for split, part in splits.items()}
    columns = [name for part in splits.values() for name in part.types]
    files[f"{source.name}.yaml"] = _configuration(source, columns, notes)
    return data_recipes.Folder(old["protocol"], source.name, files, manifest)


def write(folder: data_recipes.Folder, out: Path) -> Path:
    """Write ``OUT/<protocol>/<dataset>``, whole or not at all; the same content that is there already stays.

    Raises:
        UserError: something else is there, or it cannot be written.
    """
    target = out / folder.protocol / folder.dataset
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        try:
            there = data_recipes.load_manifest(target)
        except data_recipes.RecipeError:
            there = {}
        if {key: value for key, value in there.items() if key != "files"} != _as_json(folder.manifest):
            raise UserError(f"{target} is taken by something else; choose another --out, or remove it.")
    try:
        return data_recipes.write_folder(folder, out)
    except data_recipes.RecipeError as error:
        raise UserError(str(error)) from error


def _as_json(value: Any) -> Any:
    """What JSON makes of it: keys are text, tuples are lists."""
    import json

    return json.loads(json.dumps(value))


def _distinct(tokens: pd.Series) -> NDArray[Any]:
    """Distinct tokens, sorted."""
    return np.unique(tokens.to_numpy(dtype=object))


def _codes(columns: Sequence[pd.Series], known: pd.Series) -> tuple[list[NDArray[np.int64]], int]:
    """Places of tokens among the sorted distinct ones of ``known``, -1 for others; and how many those are."""
    import pandas as pd

    names = pd.Index(_distinct(known))
    return [names.get_indexer(column).astype(np.int64) for column in columns], len(names)


def _rows_of_users(train_users: NDArray[np.int64], users: NDArray[np.int64], draw: noise.Draw) -> NDArray[np.int64]:
    """A random training row of each of ``users``."""
    order = np.argsort(train_users, kind="stable")
    counts = np.bincount(train_users)
    starts = np.cumsum(counts) - counts
    return order[starts[users] + (draw(len(users)) * counts[users]).astype(np.int64)]


def _extended(source: BuiltFolder, split: str, like: NDArray[np.int64], items: NDArray[Any]) -> InterFile:
    """A split with rows more: labels of the training rows ``like``, numbers 0, time as in those."""
    import pandas as pd

    part, train = source.splits[split], source.splits["train"].rows
    new = {}
    for name, kind in part.types.items():
        zero = kind.startswith("float") and name != source.config.get("TIME_FIELD")
        new[name] = "0" if zero or name not in train else train[name].to_numpy()[like]
    new[source.item] = items
    return InterFile(part.types, pd.concat([part.rows, pd.DataFrame(new)], ignore_index=True))


def _interactions(source: BuiltFolder, file: InterFile) -> Interactions:
    """Users and items of a file, for counting."""
    users, items = (file.rows[name].to_numpy(dtype=object) for name in (source.user, source.item))
    return Interactions(users, items)


def _configuration(source: BuiltFolder, columns: Sequence[str], notes: Sequence[str]) -> bytes:
    """The source's RecBole configuration, which loads the new columns too."""
    config = dict(source.config)
    loaded = list(config["load_col"]["inter"])
    new = [name for name in (INJECTED, WEIGHT) if name in columns and name not in loaded]
    config["load_col"] = {**config["load_col"], "inter": loaded + new}
    lines = [*source.remarks, *(f"# {note}" for note in notes)]
    return ("\n".join(lines) + "\n" + yaml.safe_dump(config, sort_keys=False, width=1000)).encode()
