"""ModCloth and Adressa as published: counts, odd facts, RecBole reading them, files that are not the published ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data_recipes
from data_recipes import RecipeError, adressa
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.dataset import check_dataset, find_folder, load_split

SPLITS = ("train", "valid", "test", "clean_test")
Row = tuple[int, ...]


def raw_rows(path: Path) -> list[Row]:
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()]


def inter_rows(folder: Path, split: str) -> tuple[str, list[Row]]:
    header, *lines = (folder / f"{folder.name}.{split}.inter").read_text().splitlines()
    return header, [tuple(map(int, line.split("\t"))) for line in lines]


@pytest.fixture(scope="module")
def raw(real_data: Path) -> Path:
    """The folder with a folder of split files for each data set."""
    if not (real_data / "recsys" / "modcloth").is_dir():
        pytest.skip(f"{real_data} has no recsys/modcloth")
    return real_data / "recsys"


@pytest.fixture(scope="module")
def out(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both data sets under the paper protocol; read only."""
    root = tmp_path_factory.mktemp("published")
    for name in ("modcloth", "adressa"):
        assert data_recipes.build(name, root, raw / name, ["paper"]) == [root / "paper" / name]
    return root / "paper"


# What is written


@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "train.rating"), ("valid", "valid.rating"), ("test", "test.noisy"), ("clean_test", "test.negative")],
)
def test_modcloth_is_the_published_rows(out: Path, raw: Path, split: str, name: str) -> None:
    header, rows = inter_rows(out / "modcloth", split)
    assert header == "user_id:token\titem_id:token\trating:float"
    assert rows == raw_rows(raw / "modcloth" / f"modcloth.{name}")


@pytest.mark.parametrize(
    ("split", "name"), [("train", "train.pairs.tsv"), ("valid", "valid.rating"), ("clean_test", "test.negative")]
)
def test_adressa_is_the_published_pairs(out: Path, raw: Path, split: str, name: str) -> None:
    header, rows = inter_rows(out / "adressa", split)
    assert header == "user_id:token\titem_id:token"
    assert rows == [row[:2] for row in raw_rows(raw / "adressa" / f"adressa.{name}")]


def test_counts_beside_table_1(out: Path, raw: Path) -> None:
    modcloth, adressa_ = (data_recipes.load_manifest(out / name) for name in ("modcloth", "adressa"))
    assert [row[:5] for row in data_recipes.summary_rows(modcloth)[:2]] == [
        ("paper, Table 1", "44,783", "1,020", "99,893", ".99781"),
        ("source", "44,784", "1,020", "99,893", ".99781"),
    ]
    assert any("one user of the publisher's csv has no name (NaN)" in note for note in modcloth["notes"])
    assert any("1,824 users of clean_test have no interaction in train" in note for note in modcloth["notes"])
    assert data_recipes.summary_rows(adressa_)[0][:5] == ("paper, Table 1", "212,231", "6,596", "419,491", ".99970")
    assert {split: adressa_["splits"][split]["rows"] for split in SPLITS} == {
        "train": 419_491,
        "valid": 43_262,
        "test": 10_000,
        "clean_test": 18_632,
    }
    assert adressa_["splits"]["clean_test"]["duplicates"] == 604
    assert adressa_["overlaps"]["train & clean_test"] == 191
    assert any("4,818 users of clean_test" in note for note in adressa_["notes"])
    assert any("421 of them occur in no file" in note for note in adressa_["notes"])
    parts = {name: raw_rows(raw / "adressa" / f"adressa.{name}") for name in ("train.pairs.tsv", "valid.rating")}
    known = {row[:2] for rows in parts.values() for row in rows}
    masked = len(known & {row[:2] for row in raw_rows(raw / "adressa" / "adressa.test.negative")})
    assert any(f"{masked} pairs of clean_test are in train or valid" in note for note in adressa_["notes"])


def test_the_same_bytes_again_and_from_other_line_endings(out: Path, raw: Path, tmp_path: Path) -> None:
    for path in (raw / "modcloth").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    (again,) = data_recipes.build("modcloth", tmp_path / "out", tmp_path, ["paper"])
    for path in (out / "modcloth").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_adressas_flag_is_kept_where_train_has_it(out: Path, raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "adressa", tmp_path / "data" / "adressa")
    pairs = raw_rows(tmp_path / "data" / "adressa" / "adressa.train.pairs.tsv")
    (tmp_path / "data" / "adressa" / "adressa.train.pairs.tsv").unlink()
    shuffled = np.random.default_rng(0).permutation(len(pairs)).tolist()
    text = "".join(f"{pairs[k][0]}\t{pairs[k][1]}\t{k % 2}\r\n" for k in shuffled)
    (tmp_path / "data" / "adressa" / "adressa.train.rating").write_text(text)
    (folder,) = data_recipes.build("adressa", tmp_path / "out", tmp_path, ["paper"])
    header, rows = inter_rows(folder, "train")
    assert header == "user_id:token\titem_id:token\trating:float"
    assert rows == [(*pair, k % 2) for k, pair in enumerate(pairs)]
    assert "RATING_FIELD: rating" in (folder / "adressa.yaml").read_text()
    assert "RATING_FIELD" not in (out / "adressa" / "adressa.yaml").read_text()


# Who reads it


RECBOLE_SCRIPT = """
import json, sys
import numpy as np
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
out = sys.argv[1]
sys.argv = sys.argv[:1]
from recbole.config import Config
from recbole.data import create_dataset
for name in ("modcloth", "adressa"):
    options = {"gpu_id": "", "data_path": out}
    config = Config(model="BPR", dataset=name, config_file_list=[f"{out}/{name}/{name}.yaml"], config_dict=options)
    dataset = create_dataset(config)
    parts = dataset.build()
    feat = parts[0].inter_feat
    tokens = dataset.id2token("user_id", feat["user_id"][:3].numpy()).tolist()
    print(json.dumps([dataset.user_num, dataset.item_num, [len(part) for part in parts], tokens]))
"""


def test_plain_recbole_reads_both(out: Path, raw: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RECBOLE_SCRIPT, str(out)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()[-2:]]
    first = raw_rows(raw / "modcloth" / "modcloth.train.rating")[:3]
    assert found == [
        [44_785, 1_021, [79_914, 9_990, 9_989], [str(row[0]) for row in first]],
        [212_232, 6_597, [419_491, 43_262, 10_000], ["0", "0", "0"]],
    ]


@pytest.mark.parametrize(
    ("name", "space", "truth", "warm"),
    [("modcloth", (44_785, 1_021), (5_433, 4_303), 2_479), ("adressa", (212_232, 6_597), (18_028, 10_380), 5_562)],
)
def test_what_training_and_evaluation_read(
    out: Path, name: str, space: tuple[int, int], truth: tuple[int, int], warm: int
) -> None:
    data = load_split("GMF", str(out / name), "paper", {"use_gpu": False, "seed": 1})
    assert (data.truth.n_users, data.truth.n_items) == space
    tested = data.truth.counts() > 0
    assert (len(data.truth), int(tested.sum())) == truth
    assert data.unknown_test_rows == 0
    seen = data.train[0].bincount(minlength=space[0]) > 0
    assert int((tested & seen).sum()) == warm
    assert (data.rating is None) == (name == "adressa")


# Where the files are looked for


def test_raw_files_are_found_by_the_environment_and_then_in_the_cache(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path))
    monkeypatch.setenv("RECDENOISE_DATA", str(raw.parent))
    folder = find_folder("modcloth", "paper")
    assert folder == tmp_path / "modcloth" / "paper" / "modcloth"
    monkeypatch.delenv("RECDENOISE_DATA")
    assert find_folder("modcloth", "paper") == folder.resolve()
    (folder / "modcloth.train.inter").write_text("user_id:token\n")
    with pytest.raises(UserError, match=r"modcloth\.train\.inter has changed since it was built"):
        find_folder("modcloth", "paper")


def test_raw_files_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path))
    monkeypatch.delenv("RECDENOISE_DATA", raising=False)
    for function in (check_dataset, find_folder):
        with pytest.raises(
            UserError, match=r"needs adressa\.train\.rating.*wangyu-ustc/DeCA, then .*adressa --from FOLDER --out"
        ):
            function("adressa", "paper")
    assert list(tmp_path.iterdir()) == []


# Files that are not the published ones


def swap(path: Path, number: int, new: bytes) -> None:
    lines = path.read_bytes().split(b"\r\n")
    lines[number - 1] = new
    path.write_bytes(b"\r\n".join(lines))


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("train.rating", lambda path: swap(path, 7, b"1\t2"), r"train\.rating, line 7: found '1\\t2'; expected user"),
        ("train.rating", lambda path: swap(path, 7, b"a\t2\t3"), r"line 7: found 'a\\t2\\t3'"),
        ("train.rating", lambda path: swap(path, 7, b"1,2,3"), r"line 7: found '1,2,3'"),
        ("train.rating", lambda path: swap(path, 7, b""), r"line 7: found ''"),
        ("train.rating", lambda path: swap(path, 7, b"1\t2\t9"), r"line 7: rating is 9; expected 1 to 5"),
        ("train.rating", lambda path: swap(path, 7, b"1\t1020\t5"), r"line 7: item is 1020; expected 0 to 1019"),
        ("train.rating", lambda path: swap(path, 7, b"1\t2\t3"), r"not the published modcloth\.train\.rating.*sha256"),
        ("train.rating", lambda path: swap(path, 7, b"\xff\xfe\t2\t3"), r"line 7: found"),
        (
            "valid.rating",
            lambda path: path.write_bytes(path.read_bytes()[:5_000]),
            r"valid\.rating, line \d+|not the p",
        ),
        ("valid.rating", lambda path: path.write_bytes(b""), r"valid\.rating is empty"),
        ("test.noisy", Path.unlink, r"has no modcloth\.test\.noisy; modcloth is made from modcloth\.train"),
    ],
)
def test_bad_files_are_named(raw: Path, tmp_path: Path, name: str, spoil: Callable[[Path], object], said: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(raw / "modcloth", source)
    for path in source.iterdir():
        path.chmod(0o644)
    spoil(source / f"modcloth.{name}")
    with pytest.raises(RecipeError, match=said):
        data_recipes.build("modcloth", tmp_path / "out", source, ["paper"])
    assert not (tmp_path / "out").exists()


def test_adressas_train_has_to_hold_the_published_pairs(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(raw / "adressa", source)
    (source / "adressa.train.rating").write_text("1\t2\t1\n")
    with pytest.raises(
        RecipeError, match=r"does not hold the 419,491 published pairs: sorted, its 1 pairs have sha256"
    ):
        adressa.read_splits(source)
    (source / "adressa.train.rating").unlink()
    (source / "adressa.train.pairs.tsv").unlink()
    with pytest.raises(RecipeError, match=r"has no adressa\.train\.rating"):
        adressa.read_splits(source)


@pytest.mark.parametrize("name", ["modcloth", "adressa", "electronics"])
def test_sources_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"nowhere does not exist; give the folder that holds"):
        data_recipes.build(name, tmp_path / "out", tmp_path / "nowhere", ["paper"])
    with pytest.raises(RecipeError, match=rf"has no {name}\S* and no .*{name} is made from"):
        data_recipes.build(name, tmp_path / "out", tmp_path, ["paper"])
    with pytest.raises(RecipeError, match=rf"{name} has no protocol 'published'\. Valid: paper"):
        data_recipes.build(name, tmp_path / "out", tmp_path, ["published"])
