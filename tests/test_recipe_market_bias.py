"""ModCloth and Electronics from the publisher's csv, Electronics' split files, Adressa made disjoint."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data_recipes
from data_recipes import RecipeError, market_bias
from data_recipes.recipe import Job

SPLITS = ("train", "valid", "test", "clean_test")
HEADER = [
    *("item_id", "user_id", "rating", "timestamp", "size", "fit"),
    *("user_attr", "model_attr", "category"),
    "brand",
    "year",
    "split",
]
N_USERS, N_ITEMS, N_ROWS = 61, 20, 400


def small(shop: market_bias.Shop, **changes: Any) -> data_recipes.Recipe:
    """The recipe of a data set that is as large as the generated one."""
    reference = {"name": "paper, Table 1", "users": N_USERS - 1, "items": N_ITEMS, "rows": N_ROWS, "sparsity": 0.5}
    return market_bias.shop_recipe(dataclasses.replace(shop, reference=reference, users=N_USERS, **changes))


def write_csv(path: Path, unnamed: str = "") -> list[dict[str, str]]:
    """Rows in the publisher's layout: nicknames, one user without a name, dates, empty cells, quotes."""
    rng = np.random.default_rng(4)
    first = [user * N_ITEMS + user % N_ITEMS for user in range(N_USERS - 1)]  # so that everybody and everything occurs
    others = rng.permutation([k for k in range((N_USERS - 1) * N_ITEMS) if k not in first]).tolist()
    keys = [*first, *others][: N_ROWS - 1]
    rows = []
    for key in [*keys, -1]:
        user = f"nick, {key // N_ITEMS}" if key >= 0 else unnamed
        rows.append(
            dict.fromkeys(HEADER, "")
            | {
                "item_id": str(key % N_ITEMS),
                "user_id": user,
                "rating": str(rng.integers(1, 6)),
                "timestamp": f"20{rng.integers(10, 19)}-07-0{rng.integers(1, 9)} 08:00:00+00:00",
                "category": "Tops, all",
                "year": "2012",
                "split": "0",
            }
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def read_inter(folder: Path, split: str) -> list[list[str]]:
    return [line.split("\t") for line in (folder / f"{folder.name}.{split}.inter").read_text().splitlines()[1:]]


# The csv


@pytest.mark.parametrize("shop", [market_bias.MODCLOTH, market_bias.ELECTRONICS], ids=lambda shop: shop.name)
def test_the_csv_gives_a_disjoint_split(tmp_path: Path, shop: market_bias.Shop) -> None:
    rows = write_csv(tmp_path / f"df_{shop.name}.csv")
    said: list[str] = []
    (folder,) = data_recipes.build(small(shop), tmp_path / "out", tmp_path, say=said.append)
    assert folder == tmp_path / "out" / "clean" / shop.name
    assert len(said) == 1
    assert f"{shop.files[0].name} and no" in said[0]
    parts = {split: read_inter(folder, split) for split in SPLITS}
    pairs = {split: {(row[0], row[1]) for row in part} for split, part in parts.items()}
    assert sum(map(len, parts.values())) - len(parts["clean_test"]) <= N_ROWS - 1
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert pairs[a].isdisjoint(pairs[b])
    assert parts["clean_test"] == [row for row in parts["test"] if row[2] == "5"]
    raw = {(row["user_id"], row["item_id"]): row["rating"] for row in rows}
    assert all(raw[row[0], row[1]] == row[2] for split in SPLITS for row in parts[split])
    assert 0.7 < len(parts["train"]) / N_ROWS < 0.9
    manifest = data_recipes.verify_folder(folder)
    assert manifest["seed"] == 2020
    assert any("1 rows without a user or an item were left out" in note for note in manifest["notes"])
    assert data_recipes.summary_rows(manifest)[0][0] == "paper, Table 1"


def test_a_csv_that_spells_the_unnamed_user_out(tmp_path: Path) -> None:
    write_csv(tmp_path / "df_modcloth.csv", unnamed="NaN")
    (folder,) = data_recipes.build(
        small(market_bias.MODCLOTH), tmp_path / "out", tmp_path / "df_modcloth.csv", ["clean"]
    )
    manifest = data_recipes.load_manifest(folder)
    assert manifest["source"]["users"] == N_USERS
    names = {row[0] for split in SPLITS for row in read_inter(folder, split)}
    assert "NaN" not in names


def test_a_csv_of_other_totals_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "df_modcloth.csv"
    write_csv(path)
    path.write_text("\n".join(path.read_text().splitlines()[:300]) + "\n")
    with pytest.raises(
        RecipeError, match=r"df_modcloth\.csv has .*299 rows instead of 400 \(paper, Table 1\)\. .* trunc"
    ):
        data_recipes.build(small(market_bias.MODCLOTH), tmp_path / "out", tmp_path, ["clean"])
    with pytest.raises(RecipeError, match=r"299 rows instead of 99,893"):
        data_recipes.build("modcloth", tmp_path / "out", tmp_path, ["clean"])
    assert not (tmp_path / "out").exists()


def test_neither_csv_nor_split_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no modcloth\.train\.rating and no"):
        data_recipes.build("modcloth", tmp_path / "out", tmp_path)
    with pytest.raises(RecipeError, match=r"has no df_modcloth\.csv"):
        data_recipes.build("modcloth", tmp_path / "out", tmp_path, ["clean"])


# Electronics' split files: valid and test are the published ones, train is generated


def electronics_source(raw: Path, folder: Path) -> Path:
    """The published files with a train that brings users, items and rows to the published totals."""
    shop = market_bias.ELECTRONICS
    folder.mkdir()
    present = np.zeros(shop.users, dtype=bool)
    seen_items = np.zeros(shop.items, dtype=bool)
    for file in shop.files[1:]:
        (folder / file.name).symlink_to(raw / file.name)
        values = np.array((raw / file.name).read_bytes().split(), dtype=np.int64).reshape(-1, 3)
        present[values[:, 0]] = True
        seen_items[values[:, 1]] = True
    users = np.flatnonzero(~present)
    users = np.concatenate([users, np.arange(1_292_954 - 129_296 - 129_295 - len(users))])
    items = np.random.default_rng(0).integers(0, shop.items, len(users))
    lacking = np.flatnonzero(~seen_items)
    items[: len(lacking)] = lacking
    text = "".join(f"{u}\t{i}\t{u % 5 + 1}\r\n" for u, i in zip(users.tolist(), items.tolist(), strict=True))
    (folder / shop.files[0].name).write_text(text)
    return folder


def test_electronics_on_its_valid_and_test_files(real_data: Path, tmp_path: Path) -> None:
    raw = real_data / "recsys" / "electronics"
    if not raw.is_dir():
        pytest.skip(f"{raw} is not there")
    source = electronics_source(raw, tmp_path / "source")
    (folder,) = data_recipes.build("electronics", tmp_path / "out", source, ["paper"])
    manifest = data_recipes.load_manifest(folder)
    assert [row[:5] for row in data_recipes.summary_rows(manifest)[:2]] == [
        ("paper, Table 1", "1,157,633", "9,560", "1,292,954", ".99988"),
        ("source", "1,157,633", "9,560", "1,292,954", ".99988"),
    ]
    assert {split: manifest["splits"][split]["rows"] for split in SPLITS} == {
        "train": 1_034_363,
        "valid": 129_296,
        "test": 129_295,
        "clean_test": 75_674,
    }
    assert manifest["splits"]["clean_test"]["users"] == 74_888
    assert any("is checked by its counts alone" in note for note in manifest["notes"])
    with (source / "electronics_5.train.rating").open("a") as file:
        file.write("1\t1\t5\n")
    with pytest.raises(RecipeError, match=r"1,292,955 rows instead of 1,292,954"):
        data_recipes.build("electronics", tmp_path / "out", source, ["paper"])


def test_electronics_train_is_not_at_hand(real_data: Path, tmp_path: Path) -> None:
    raw = real_data / "recsys" / "electronics"
    with pytest.raises(RecipeError, match=r"has no electronics_5\.train\.rating; electronics is made from"):
        data_recipes.build("electronics", tmp_path / "out", raw, ["paper"])


# Adressa made disjoint


def test_adressas_clean_protocol_is_a_plain_loops(real_data: Path, tmp_path: Path) -> None:
    raw = real_data / "recsys" / "adressa"
    if not raw.is_dir():
        pytest.skip(f"{raw} is not there")
    (folder,) = data_recipes.build("adressa", tmp_path / "out", raw, ["clean"])
    names = {"train": "train.pairs.tsv", "valid": "valid.rating", "test": "test.noisy", "clean_test": "test.negative"}
    published = {
        split: [tuple(line.split("\t")[:2]) for line in (raw / f"adressa.{name}").read_text().splitlines()]
        for split, name in names.items()
    }
    seen = set(published["train"])
    known = {item for _, item in seen}
    expected = {"train": published["train"]}
    for split in SPLITS[1:]:
        kept = [pair for pair in dict.fromkeys(published[split]) if pair not in seen and pair[1] in known]
        expected[split] = kept
        seen |= set(kept) if split == "valid" else set()
    manifest = data_recipes.load_manifest(folder)
    for split in SPLITS:
        assert [tuple(row) for row in read_inter(folder, split)] == expected[split]
        assert manifest["splits"][split]["items_not_in_train"] == manifest["splits"][split]["duplicates"] == 0
    assert manifest["dropped"] == {split: len(published[split]) - len(expected[split]) for split in SPLITS[1:]}
    shared = {pair: count for pair, count in manifest["overlaps"].items() if count}
    assert shared.keys() <= {"test & clean_test"}
    assert any(note.startswith("clean_test lost 604 repeated rows") for note in manifest["notes"])


def test_a_recipe_needs_its_files() -> None:
    for name in ("modcloth", "electronics", "adressa"):
        with pytest.raises(RecipeError, match=f"{name} needs the folder with its raw files"):
            data_recipes.RECIPES[name].build(Job(None, ["paper"], Path))
