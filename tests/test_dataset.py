"""Built folders as tensors: both protocols, the clean test by tokens, and folders that are not what they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import data_recipes
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.dataset import SplitData, cache_folder, check_dataset, find_folder, load_split
from tests.built_folder import N_ITEMS, N_USERS, Split, interactions, splits, write_built

OPTIONS = {"use_gpu": False, "seed": 1}


def load(folder: Path, protocol: str = "paper", model: str = "GMF") -> SplitData:
    return load_split(model, str(folder), protocol, {**OPTIONS, "embedding_size": 4})


def tokens(data: SplitData, users: torch.Tensor, items: torch.Tensor) -> list[tuple[str, str]]:
    return list(zip(data.user_tokens[users.numpy()].tolist(), data.item_tokens[items.numpy()].tolist(), strict=True))


def pairs(part: object) -> list[tuple[str, str]]:
    return list(zip(part.users.tolist(), part.items.tolist(), strict=True))  # type: ignore[attr-defined]


# What is loaded


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_splits_by_token(built: Path, protocol: str) -> None:
    data = load(built, protocol)
    parts = splits(protocol)
    assert (data.name, data.protocol) == ("tiny", protocol)
    assert tokens(data, *data.train) == pairs(parts["train"])
    assert tokens(data, *data.valid) == pairs(parts["valid"])
    truth = tokens(data, data.truth.users(), data.truth.items)
    assert sorted(truth) == sorted(pairs(parts["clean_test"]))
    assert len(truth) == len(set(truth)) > 0
    known = tokens(data, data.known.users(), data.known.items)
    assert sorted(known) == sorted(pairs(parts["train"]) + pairs(parts["valid"]))
    assert data.rating is not None
    assert data.rating.tolist() == parts["train"].ratings.tolist()
    assert data.unknown_test_rows == 0
    assert (data.truth.n_users, data.truth.n_items) == (N_USERS + 1, N_ITEMS + 1)
    assert data.user_tokens[0] == data.item_tokens[0] == "[PAD]"


def test_the_two_protocols_overlap_as_they_say(built: Path) -> None:
    paper, clean = load(built, "paper"), load(built, "clean")
    assert len(paper.truth.minus(paper.known)) < len(paper.truth)
    assert len(clean.truth.minus(clean.known)) == len(clean.truth)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_ml_100k_has_the_counts_of_its_manifest(cache: Path, protocol: str) -> None:
    data = load_split("GMF", "ml-100k", protocol, OPTIONS)
    assert data.folder == cache / "ml-100k" / protocol / "ml-100k"
    manifest = data_recipes.load_manifest(data.folder)
    counts = manifest["splits"]
    for name, (users, items) in (("train", data.train), ("valid", data.valid)):
        assert len(users) == counts[name]["rows"]
        assert users.unique().numel() == counts[name]["users"]
        assert items.unique().numel() == counts[name]["items"]
    clean = counts["clean_test"]
    assert (len(data.truth), int((data.truth.counts() > 0).sum())) == (clean["rows"], clean["users"])
    assert int((data.truth.item_popularity() > 0).sum()) == clean["items"]
    assert data.unknown_test_rows == 0
    if protocol == "paper":  # the figures of the published files
        assert (len(data.train[0]), len(data.truth)) == (79_619, 3_594)
        assert len(data.truth) - len(data.truth.minus(data.known)) == 1_707
        assert int((data.truth.counts() > 0).sum()) == 707


def test_the_dataset_of_an_autoencoder_is_the_training_split(built: Path) -> None:
    data = load(built, model="CDAE")
    assert len(data.dataset.inter_feat) == len(data.train[0])


# Where it is looked for


@pytest.mark.parametrize("inside", ["", "paper/tiny"])
def test_a_folder_is_given_as_a_whole_or_by_its_protocol(built: Path, inside: str) -> None:
    assert find_folder(str(built / inside), "paper") == (built / "paper" / "tiny").resolve()
    check_dataset(str(built / inside), "paper")


def test_a_protocols_folder_is_not_the_other_protocol(built: Path) -> None:
    for function in (find_folder, check_dataset):
        with pytest.raises(UserError, match="holds the paper protocol; give --protocol paper"):
            function(str(built / "paper" / "tiny"), "clean")


def test_a_folder_without_the_protocol(tmp_path: Path) -> None:
    only = write_built(tmp_path, ("clean",))
    with pytest.raises(UserError, match=r"was not built by a recipe: it has no paper/NAME/manifest\.json"):
        find_folder(str(only), "paper")


def test_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("RECDENOISE_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "recdenoise"


@pytest.mark.parametrize(
    ("dataset", "protocol", "message"),
    [
        (
            "ml-100",
            "paper",
            r"no data set 'ml-100': it is neither a recipe \(ml-100k.*\) nor a folder. Did you mean 'ml-",
        ),
        ("no/such/folder", "paper", "neither a recipe"),
        ("ml-100k", "published", "Unknown protocol 'published'. Valid: paper, clean"),
        (".", "paper", "was not built by a recipe"),
    ],
)
def test_nothing_there(here: Path, dataset: str, protocol: str, message: str) -> None:
    for function in (find_folder, check_dataset):
        with pytest.raises(UserError, match=message):
            function(dataset, protocol)


def test_checking_builds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path))
    check_dataset("ml-100k", "clean")
    assert list(tmp_path.iterdir()) == []


# Folders that are not what they were


def changed(built: Path, tmp_path: Path, name: str, change: Callable[[Path], object]) -> Path:
    shutil.copytree(built, tmp_path / "data")
    change(tmp_path / "data" / "paper" / "tiny" / name)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["tiny.train.inter", "tiny.clean_test.inter", "tiny.yaml"])
def test_a_changed_file_is_named(built: Path, tmp_path: Path, name: str) -> None:
    def append(path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"\n")

    folder = changed(built, tmp_path, name, append)
    with pytest.raises(UserError, match=rf"{name} has changed since it was built"):
        load(folder)


def test_a_truncated_or_missing_file_is_named(built: Path, tmp_path: Path) -> None:
    folder = changed(built, tmp_path, "tiny.valid.inter", lambda path: path.write_bytes(path.read_bytes()[:40]))
    with pytest.raises(UserError, match=r"tiny\.valid\.inter has changed"):
        load(folder)
    (folder / "paper" / "tiny" / "tiny.valid.inter").unlink()
    with pytest.raises(UserError, match=r"Cannot read .*tiny\.valid\.inter"):
        load(folder)


def test_a_manifest_that_is_none(built: Path, tmp_path: Path) -> None:
    folder = changed(built, tmp_path, "manifest.json", lambda path: path.write_text("{"))
    for function in (find_folder, check_dataset):
        with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
            function(str(folder), "paper")
    (folder / "paper" / "tiny" / "manifest.json").write_text(json.dumps({"recipe": "tiny"}))
    with pytest.raises(UserError, match="is not a recipe's manifest"):
        find_folder(str(folder), "paper")


@pytest.mark.parametrize("split", ["train", "valid", "test", "clean_test"])
def test_an_empty_split_is_named(tmp_path: Path, split: str) -> None:
    def empty(parts: Split) -> None:
        parts[split] = interactions([])

    folder = write_built(tmp_path, ("paper",), empty)
    wanted = "clean test .* is empty" if split == "clean_test" else f"The {split} split of .*tiny is empty"
    with pytest.raises(UserError, match=wanted):
        load(folder)


# Strangers in the clean test


def test_unknown_users_and_items_are_counted(tmp_path: Path) -> None:
    def add(parts: Split) -> None:
        old = parts["clean_test"]
        rows = list(zip(old.users.tolist(), old.items.tolist(), old.ratings.tolist(), strict=True))
        parts["clean_test"] = interactions([*rows, ("stranger", "i1", 5), ("u1", "new", 5), ("stranger", "new", 5)])

    data = load(write_built(tmp_path, ("paper",), add))
    assert data.unknown_test_rows == 3
    assert len(data.truth) == len(splits("paper")["clean_test"])


def test_bad_rows_of_the_clean_test_are_named(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a folder whose sums were made up to date by hand gets this far."""
    shutil.copytree(built, tmp_path / "data")
    monkeypatch.setattr(data_recipes, "verify_folder", data_recipes.load_manifest)
    path = tmp_path / "data" / "paper" / "tiny" / "tiny.clean_test.inter"
    good = path.read_text().splitlines()
    path.write_text("\n".join([*good[:3], "u1\ti1", *good[3:]]) + "\n")
    with pytest.raises(UserError, match=r"tiny\.clean_test\.inter, line 4: 2 columns where the header has 3"):
        load(tmp_path / "data")
    path.write_text("a:token\tb:token\nu1\ti1\n")
    with pytest.raises(UserError, match=r"tiny\.clean_test\.inter, line 1: the header must name user_id and item_id"):
        load(tmp_path / "data")
    path.unlink()
    with pytest.raises(UserError, match="There is no clean test"):
        load(tmp_path / "data")


# Users by token


def test_user_ids(built: Path) -> None:
    data = load(built)
    assert data.user_tokens[data.user_ids(["u7", "u1", "u7"]).numpy()].tolist() == ["u7", "u1", "u7"]
    with pytest.raises(UserError, match=r"No user 'u99', '\[PAD\]' in tiny; its users are u"):
        data.user_ids(["u1", "u99", "[PAD]"])
