"""What every recipe shares: the old sort, the figures of a split, and putting folders in place whole or not at all."""

from __future__ import annotations

import builtins
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_recipes
from data_recipes import RecipeError, ml_100k, publish
from data_recipes.interactions import Interactions, count_splits, inter_file
from data_recipes.manifest import check_totals, describe
from data_recipes.numpy_order import unstable_argsort


@pytest.fixture
def tiny() -> data_recipes.Folder:
    """A tiny folder for tests of publishing alone."""
    part = Interactions(np.array([1, 2]), np.array([5, 6]), np.array([5, 3]))
    manifest = describe(
        ml_100k.RECIPE,
        "paper",
        reference=ml_100k.REFERENCE,
        source=part,
        source_sha256="0" * 64,
        splits={"train": part},
        dropped={},
        notes=[],
    )
    return data_recipes.Folder("paper", "ml-100k", {"a.inter": inter_file(part), "b.inter": b"b\n"}, manifest)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The old sort


def test_unstable_argsort_by_hand() -> None:
    # 17 equal keys: the pivot (8) is parked at 15, positions 1..14 swap end to end, the pivot comes back to the middle.
    assert unstable_argsort([7] * 17) == [0, 14, 13, 12, 11, 10, 9, 15, 8, 6, 5, 4, 3, 2, 1, 7, 16]
    # 16 equal keys are one run of insertion, which moves nothing.
    assert unstable_argsort([7] * 16) == list(range(16))
    assert unstable_argsort([]) == []
    assert unstable_argsort([3]) == [0]


@given(st.lists(st.integers(-4, 4), max_size=200))
def test_unstable_argsort_sorts(keys: list[int]) -> None:
    order = unstable_argsort(keys)
    assert sorted(order) == list(range(len(keys)))
    assert [keys[position] for position in order] == sorted(keys)


@given(st.lists(st.integers(), unique=True, max_size=200))
def test_unstable_argsort_is_argsort_without_ties(keys: list[int]) -> None:
    assert unstable_argsort(keys) == sorted(range(len(keys)), key=keys.__getitem__)


# Figures and files


pairs_of_ids = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30)


@given(pairs_of_ids, pairs_of_ids)
def test_counts_equal_a_plain_loop(train: list[tuple[int, int]], test: list[tuple[int, int]]) -> None:
    def part(pairs: list[tuple[int, int]]) -> Interactions:
        users, items = np.array(pairs).T
        return Interactions(users, items, np.ones(len(pairs), dtype=int))

    counts, overlaps = count_splits({"train": part(train), "test": part(test)})
    users, items = {user for user, _ in test}, {item for _, item in test}
    assert counts["test"] == {
        "users": len(users),
        "items": len(items),
        "rows": len(test),
        "sparsity": round(1 - len(test) / (len(users) * len(items)), 6),
        "duplicates": len(test) - len(set(test)),
        "users_not_in_train": len(users - {user for user, _ in train}),
        "items_not_in_train": len(items - {item for _, item in train}),
    }
    assert overlaps == {"train & test": len(set(train) & set(test))}


def test_inter_file_takes_string_ids_and_no_timestamps() -> None:
    part = Interactions(np.array(["ann", "bob"]), np.array(["x", "y"]), np.array([4, 5]))
    assert inter_file(part) == b"user_id:token\titem_id:token\trating:float\nann\tx\t4\nbob\ty\t5\n"


def test_totals_that_disagree() -> None:
    part = Interactions(np.array([1, 2]), np.array([1, 1]), np.array([5, 5]))
    reference = {"name": "Table 9", "users": 3, "items": 1, "rows": 2, "sparsity": 0.5}
    with pytest.raises(RecipeError, match=r"somefile has 2 users instead of 3 \(Table 9\)\."):
        check_totals("somefile", part, reference)


# Publishing


def test_damaged_and_older_builds_are_replaced(tiny: data_recipes.Folder, tmp_path: Path) -> None:
    target = publish.write_folder(tiny, tmp_path)
    whole = tree(tmp_path)
    (target / "a.inter").write_bytes(b"half")
    with pytest.raises(RecipeError, match=r"a\.inter has changed since it was built"):
        data_recipes.verify_folder(target)
    (target / "b.inter").unlink()
    publish.write_folder(tiny, tmp_path)
    assert tree(tmp_path) == whole

    older = data_recipes.Folder("paper", "ml-100k", {"a.inter": b"old"}, {**tiny.manifest, "version": 0})
    publish.write_folder(older, tmp_path)
    (target / "mine.txt").write_bytes(b"kept")
    publish.write_folder(tiny, tmp_path)
    assert tree(tmp_path) == {**whole, "paper/ml-100k/mine.txt": b"kept"}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"recipe": "other"}, "it holds recipe 'other', protocol 'paper', not 'ml-100k', 'paper'"),
        ({"protocol": "clean"}, "it holds recipe 'ml-100k', protocol 'clean'"),
        (None, r"has no manifest\.json"),
    ],
)
def test_folders_of_others_are_refused(
    tiny: data_recipes.Folder, tmp_path: Path, manifest: dict[str, str] | None, said: str
) -> None:
    target = tmp_path / "paper" / "ml-100k"
    target.mkdir(parents=True)
    publish.write_folder(tiny, tmp_path)  # an empty folder is fine
    whole = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").unlink()
    if manifest is not None:
        (target / "manifest.json").write_text(json.dumps({**whole, **manifest}))
    before = tree(tmp_path)
    with pytest.raises(RecipeError, match=said):
        publish.write_folder(tiny, tmp_path)
    assert tree(tmp_path) == before


def test_files_in_the_way_are_refused(tiny: data_recipes.Folder, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(RecipeError, match=r"Cannot use the output folder .*file/paper: Not a directory"):
        publish.write_folder(tiny, file)
    (tmp_path / "other" / "paper").mkdir(parents=True)
    (tmp_path / "other" / "paper" / "ml-100k").write_bytes(b"")
    with pytest.raises(RecipeError, match="is a file; choose another output folder"):
        publish.write_folder(tiny, tmp_path / "other")


@pytest.mark.parametrize("older_build", [False, True])
def test_full_disk_changes_nothing(
    tiny: data_recipes.Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older_build: bool
) -> None:
    if older_build:
        older = data_recipes.Folder("paper", "ml-100k", {"a.inter": b"old"}, {**tiny.manifest, "version": 0})
        publish.write_folder(older, tmp_path)
    before = tree(tmp_path)

    def full(path: Path, mode: str) -> Any:
        if path.name == "b.inter":
            raise OSError(errno.ENOSPC, "No space left on device")
        return builtins.open(path, mode)

    monkeypatch.setattr(publish, "open", full, raising=False)
    with pytest.raises(RecipeError, match=r"Cannot write .*paper/ml-100k/b\.inter: No space left on device"):
        publish.write_folder(tiny, tmp_path)
    assert tree(tmp_path) == before
    assert not [path for path in (tmp_path / "paper").iterdir() if path.name.startswith(".")]


def test_unwritable_output(tiny: data_recipes.Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RecipeError, match=r"Cannot use the output folder .*paper: Permission denied"):
        publish.write_folder(tiny, tmp_path / "new")


def test_a_quicker_process_wins_quietly(
    tiny: data_recipes.Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def overtaken(hidden: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        publish.write_folder(tiny, tmp_path)  # the other process finishes between our last look and our rename
        rename(hidden, target)

    monkeypatch.setattr(os, "rename", overtaken)
    target = publish.write_folder(tiny, tmp_path)
    assert data_recipes.verify_folder(target)["protocol"] == "paper"
    assert sorted(path.name for path in (tmp_path / "paper").iterdir()) == ["ml-100k"]


# Manifests of others


def test_manifests_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no folder"):
        data_recipes.load_manifest(tmp_path / "none")
    with pytest.raises(RecipeError, match=r"has no manifest\.json"):
        data_recipes.load_manifest(tmp_path)
    for text, said in (
        ("{", "is not valid JSON"),
        ("[1]", "holds list, not an object"),
        ('{"recipe": 3}', "'recipe' is missing or not str"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(RecipeError, match=said):
            data_recipes.load_manifest(tmp_path)
