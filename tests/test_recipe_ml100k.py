"""The MovieLens-100K recipe: published bytes, plain recomputations, RecBole reading it, bad sources."""

from __future__ import annotations

import errno
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data_recipes
from data_recipes import RecipeError, ml_100k
from data_recipes.interactions import Interactions

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "ml-100k.train.rating": "cc83282c0c3dd2e6e01359cea1f44fa0c10048a87a394c80fe1499f2bc7e8717",
    "ml-100k.valid.noisy": "dfa7eb1aad8ab4e0ed6de2952407e7c8f2ca0e452ca400ecd549c228fc464924",
    "ml-100k.valid.rating": "00571cac093aa3ec1f4b9be0d8fbc0a0c4d3a0542ee126e1573f671337da7f2b",
    "ml-100k.test.noisy": "bd30a3ed63d5452e4940bc4d0f15b85ba0763f67c46bab9aae9e2348c4667dd8",
    "ml-100k.test.negative": "b6ef56ff61d6d79e27f1f08fda63c83cad72624d5ef7bddd388e165b57bf5551",
}
SPLITS = ("train", "valid", "test", "clean_test")


@pytest.fixture(scope="module")
def wheel_file() -> Path:
    """RecBole's copy of the raw file; found, not imported."""
    try:
        return ml_100k.find_source(None)
    except RecipeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def raw_rows(wheel_file: Path) -> list[bytes]:
    """The 100,000 rows without line endings."""
    return wheel_file.read_bytes().splitlines()[1:]


@pytest.fixture(scope="module")
def ratings(wheel_file: Path) -> Interactions:
    return ml_100k.read_ratings(wheel_file)


@pytest.fixture(scope="module")
def out(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build; tests only read it."""
    root = tmp_path_factory.mktemp("built")
    assert data_recipes.build("ml-100k", root) == [root / "paper" / "ml-100k", root / "clean" / "ml-100k"]
    return root


def read_inter(folder: Path, split: str) -> list[tuple[int, int, int, int]]:
    lines = (folder / f"ml-100k.{split}.inter").read_text().split("\n")
    assert lines[0] == "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    assert lines[-1] == ""
    return [tuple(map(int, line.split("\t"))) for line in lines[1:-1]]  # type: ignore[misc]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The paper protocol


def test_published_files_have_the_published_sha256(out: Path) -> None:
    found = {name: hashlib.sha256((out / "paper" / "ml-100k" / name).read_bytes()).hexdigest() for name in PUBLISHED}
    assert found == PUBLISHED


def test_published_files_equal_the_real_ones(out: Path, real_data: Path) -> None:
    real = real_data / "recsys" / "ml-100k"
    if not real.is_dir():
        pytest.skip(f"{real} is not there")
    for name in PUBLISHED:
        assert (out / "paper" / "ml-100k" / name).read_bytes() == (real / name).read_bytes()


@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "train.rating"), ("valid", "valid.rating"), ("test", "test.noisy"), ("clean_test", "test.negative")],
)
def test_inter_files_are_the_published_rows_under_raw_ids(
    out: Path, raw_rows: list[bytes], split: str, name: str
) -> None:
    folder = out / "paper" / "ml-100k"
    raw = {tuple(map(int, row.split(b"\t"))) for row in raw_rows}
    item_of_rank = sorted({item for _, item, _, _ in read_inter(folder, "train")})
    published = [tuple(map(int, line.split("\t"))) for line in (folder / f"ml-100k.{name}").read_text().splitlines()]
    rows = read_inter(folder, split)
    assert set(rows) <= raw
    assert [(user, item, rating) for user, item, rating, _ in rows] == [
        (user, item_of_rank[rank], rating) for user, rank, rating in published
    ]


def test_a_stable_sort_would_not_give_the_paper_split(ratings: Interactions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ml_100k, "unstable_argsort", lambda keys: np.argsort(keys, kind="stable"))
    files = ml_100k.paper_folder(ratings).files
    assert all(hashlib.sha256(files[name]).hexdigest() != sha for name, sha in PUBLISHED.items())


def test_paper_manifest_tells_the_leak(out: Path) -> None:
    manifest = data_recipes.load_manifest(out / "paper" / "ml-100k")
    assert manifest["overlaps"]["valid & test"] == manifest["overlaps"]["valid & clean_test"] == 1707
    assert manifest["overlaps"]["train & test"] == 0
    assert {name: split["rows"] for name, split in manifest["splits"].items()} == {
        "train": 79_619,
        "valid": 1_707,
        "test": 20_293,
        "clean_test": 3_594,
    }
    assert (manifest["splits"]["train"]["items"], manifest["splits"]["clean_test"]["users"]) == (1_611, 707)
    assert any("valid lies inside test" in note for note in manifest["notes"])
    assert manifest["seed"] is None


# The clean protocol


def test_clean_split_equals_a_plain_loop(out: Path, raw_rows: list[bytes]) -> None:
    rows = [tuple(map(int, row.split(b"\t"))) for row in raw_rows]
    histories: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        histories[row[0]].append(number)
    parts: dict[str, set[int]] = {"train": set(), "valid": set(), "test": set()}
    for history in histories.values():
        history.sort(key=lambda number: (rows[number][3], number))
        n = len(history)
        parts["train"].update(history[: int(0.8 * n)])
        parts["valid"].update(history[int(0.8 * n) : int(0.9 * n)])
        parts["test"].update(history[int(0.9 * n) :])
    known = {rows[number][1] for number in parts["train"]}
    expected = {name: [rows[k] for k in sorted(part) if rows[k][1] in known] for name, part in parts.items()}
    expected["clean_test"] = [row for row in expected["test"] if row[2] == 5]
    folder = out / "clean" / "ml-100k"
    manifest = data_recipes.load_manifest(folder)
    for name, wanted in expected.items():
        assert read_inter(folder, name) == wanted
        assert manifest["splits"][name]["rows"] == len(wanted)
    assert manifest["dropped"] == {name: len(parts[name]) - len(expected[name]) for name in ("valid", "test")}


def test_clean_splits_are_disjoint_and_reachable(out: Path) -> None:
    folder = out / "clean" / "ml-100k"
    manifest = data_recipes.load_manifest(folder)
    pairs = {name: {row[:2] for row in read_inter(folder, name)} for name in SPLITS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert pairs[a].isdisjoint(pairs[b])
    assert pairs["clean_test"] < pairs["test"]
    for name in SPLITS:
        assert manifest["splits"][name]["items_not_in_train"] == manifest["splits"][name]["users_not_in_train"] == 0
    assert not any((folder / name).exists() for name in PUBLISHED)


# Figures and files


def test_summary_shows_table_1_beside_the_source(out: Path) -> None:
    rows = data_recipes.summary_rows(data_recipes.load_manifest(out / "paper" / "ml-100k"))
    assert rows[0] == ("paper, Table 1", "943", "1,682", "100,000", ".93695", "", "", "")
    assert rows[1][1:5] == rows[0][1:5]
    assert [row[0] for row in rows[2:]] == list(SPLITS)
    assert rows[2][1:4] == ("943", "1,611", "79,619")
    assert {len(row) for row in rows} == {len(data_recipes.SUMMARY_COLUMNS)}


def test_manifest_and_yaml_hold_no_path_of_the_machine(out: Path) -> None:
    for folder in (out / "paper" / "ml-100k", out / "clean" / "ml-100k"):
        text = (folder / "ml-100k.yaml").read_text() + (folder / "manifest.json").read_text()
        assert str(out) not in text
        assert str(Path.home()) + "/" not in text
        assert data_recipes.verify_folder(folder)["files"].keys() == {
            path.name for path in folder.iterdir() if path.name != "manifest.json"
        }


RECBOLE_SCRIPT = """
import json, sys
import numpy as np
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
out = sys.argv[1]
sys.argv = sys.argv[:1]
from recbole.config import Config
from recbole.data import create_dataset
for protocol in ("paper", "clean"):
    folder = f"{out}/{protocol}/ml-100k"
    files = [f"{folder}/ml-100k.yaml"]
    config = Config(model="BPR", dataset="ml-100k", config_file_list=files, config_dict={"gpu_id": ""})
    config["data_path"] = folder
    dataset = create_dataset(config)
    parts = dataset.build()
    feat = parts[0].inter_feat
    tokens = dataset.id2token("item_id", feat["item_id"][:3].numpy()).tolist()
    sizes = [len(part) for part in parts]
    print(json.dumps([dataset.user_num, dataset.item_num, sizes, feat["rating"][:3].tolist(), tokens]))
"""


def test_recbole_reads_the_folders(out: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RECBOLE_SCRIPT, str(out)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for protocol, line in zip(("paper", "clean"), run.stdout.splitlines()[-2:], strict=True):
        n_users, n_items, sizes, first_ratings, tokens = json.loads(line)
        splits = data_recipes.load_manifest(out / protocol / "ml-100k")["splits"]
        train = read_inter(out / protocol / "ml-100k", "train")
        assert (n_users, n_items) == (splits["train"]["users"] + 1, splits["train"]["items"] + 1)
        assert sizes == [splits[name]["rows"] for name in ("train", "valid", "test")]
        assert first_ratings == [row[2] for row in train[:3]]
        assert tokens == [str(row[1]) for row in train[:3]]


# Sources


@pytest.mark.parametrize("form", ["u.data", "crlf", "folder", "nested folder", "no last newline"])
def test_every_form_of_the_source_gives_the_same_rows(
    raw_rows: list[bytes], ratings: Interactions, tmp_path: Path, form: str
) -> None:
    source = tmp_path / "u.data"
    if form == "crlf":
        source = tmp_path / "ml-100k.inter"
        source.write_bytes(ml_100k.HEADER + b"\r\n" + b"\r\n".join(raw_rows) + b"\r\n")
    elif form == "nested folder":
        (tmp_path / "ml-100k").mkdir()
        (tmp_path / "ml-100k" / "u.data").write_bytes(b"\n".join(raw_rows) + b"\n")
        source = tmp_path
    else:
        source.write_bytes(b"\n".join(raw_rows) + b"\n" * (form != "no last newline"))
        source = tmp_path if form == "folder" else source
    found = ml_100k.read_ratings(ml_100k.find_source(source))
    for name, column in ratings.columns().items():
        np.testing.assert_array_equal(found.columns()[name], column)


def change(line: int, new: bytes | None) -> Callable[[list[bytes]], list[bytes]]:
    """Replace a line of the ``.inter`` file (1 is the header), or cut the file off before it."""
    return lambda lines: [*lines[: line - 1], new, *lines[line:]] if new is not None else lines[: line - 1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change(70, b"1\t2\t3"), r"line 70: 3 tab-separated field\(s\) instead of 4"),
        (change(70, b""), r"line 70: 1 tab-separated field\(s\)"),
        (change(2, b"1\t2\t3\t4\t5"), r"line 2: 5 tab-separated"),
        (change(100_001, b"1,2,3,4"), r"line 100001: 1 tab-separated.*'1,2,3,4'"),
        (change(3, b"1\t2\t6\t4"), r"line 3: rating is '6'; expected a whole number from 1 to 5"),
        (change(3, b"1\t2\t3.5\t4"), r"line 3: rating is '3\.5'"),
        (change(3, b"0\t2\t3\t4"), r"line 3: user is '0'; expected a whole number from 1"),
        (change(3, b"1\t-2\t3\t4"), r"line 3: item is '-2'"),
        (change(3, b"1\t2\t3\tNaN"), r"line 3: timestamp is 'NaN'"),
        (change(3, b"1\t" + b"9" * 400 + b"\t3\t4"), r"line 3: item is '9{57}\.\.\.'"),
        (change(3, b"\xff\xfe\t2\t3\t4"), r"line 3: user is"),
        (change(1, b"user,item"), r"line 1: found 'user,item'; expected the header"),
        (change(90_000, None), r"89,998 rows instead of 100,000 \(paper, Table 1\)\. The file looks truncated"),
        (change(2, None), r"has 0 users instead of 943"),
        (change(1, None), r"line 1: found ''"),
        (change(3, b"1\t1682\t3\t4"), r"rows have sha256 [0-9a-f]{64}, expected 06416e59"),
        (lambda lines: [*lines, lines[-1]], r"100,001 rows instead of 100,000"),
    ],
)
def test_bad_source_is_named(
    wheel_file: Path, tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    source = tmp_path / "bad.inter"
    lines = spoil(wheel_file.read_bytes().splitlines())
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(RecipeError, match=said) as caught:
        data_recipes.build("ml-100k", tmp_path / "out", source)
    assert str(source) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_absent_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no file .*nowhere"):
        data_recipes.build("ml-100k", tmp_path, tmp_path / "nowhere")
    with pytest.raises(RecipeError, match=r"has neither ml-100k\.inter nor u\.data"):
        data_recipes.build("ml-100k", tmp_path, tmp_path)


def test_unreadable_source_is_named(wheel_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(RecipeError, match=r"Cannot read .*ml-100k\.inter: Permission denied"):
        data_recipes.build("ml-100k", tmp_path)


def test_recbole_absent_or_without_its_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_spec(name: str) -> None:
        raise ValueError(f"{name}.__spec__ is None")

    for finder in (lambda name: None, no_spec):
        monkeypatch.setattr(importlib.util, "find_spec", finder)
        with pytest.raises(RecipeError, match=r"recbole is not installed\. Install recbole, or give u\.data"):
            data_recipes.build("ml-100k", tmp_path)
    spec = importlib.machinery.ModuleSpec("recbole", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(RecipeError, match=r"recbole is installed in .*, without dataset_example"):
        data_recipes.build("ml-100k", tmp_path)


def test_unknown_recipe_lists_the_names() -> None:
    with pytest.raises(RecipeError, match=r"Unknown recipe 'ml-100'\. Did you mean 'ml-100k'\? Valid: ml-100k"):
        data_recipes.build("ml-100", "anywhere")


# Building twice


def test_same_input_same_bytes_and_a_complete_build_is_left_alone(out: Path, tmp_path: Path) -> None:
    folders = data_recipes.build("ml-100k", tmp_path)
    assert tree(tmp_path) == tree(out)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert data_recipes.build("ml-100k", str(tmp_path)) == folders
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


BUILD_SCRIPT = """
import sys
import data_recipes
data_recipes.build("ml-100k", sys.argv[1])
print([name for name in ("recbole", "torch", "recdenoise") if name in sys.modules])
"""


def test_two_processes_at_once_without_recbole_or_torch(wheel_file: Path, out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD_SCRIPT, str(tmp_path)]
    runs = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        printed, complaints = run.communicate(timeout=120)
        assert run.returncode == 0, complaints
        assert printed.strip() == "[]"
    assert tree(tmp_path) == tree(out)
