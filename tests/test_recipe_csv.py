"""A table of one's own: the rule, the reading, the split against a plain loop, bounded memory."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_recipes
from data_recipes import RecipeError
from data_recipes.clean_rule import read_rule
from data_recipes.csv_rows import Table
from data_recipes.table_split import Cut, TableSplit
from data_recipes.tokens import safe_token
from tests.click_tables import SPLITS, Row, build, clicks, read_inter, write
from tests.command import environment

# The rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a >= 2", [0, 0, 1, 1, 0]),
        ("a == 1 or a == 3", [0, 1, 0, 1, 0]),
        ("a > 0 and b < 1", [0, 1, 0, 1, 0]),
        ("not a >= 2", [1, 1, 0, 0, 0]),
        ("not (a >= 2 or b == -5e-1)", [0, 1, 0, 0, 0]),
        ("a > 2 or a > 0 and b < 1", [0, 1, 0, 1, 0]),
        ("(a > 2 or a > 0) and b < 1", [0, 1, 0, 1, 0]),
        ("NOT a!=0", [1, 0, 0, 0, 0]),
        ("`a` <= +1.", [1, 1, 0, 0, 0]),
        ("not not a < .5", [1, 0, 0, 0, 0]),
    ],
)
def test_rules_by_hand(text: str, expected: list[int]) -> None:
    nan = float("nan")
    columns = {"a": np.array([0.0, 1, 2, 3, nan]), "b": np.array([-0.5, 0, 1, 0, 0])}
    rule = read_rule(text)
    assert rule({name: columns[name] for name in rule.columns}).astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has its end where a column's name is due"),
        ("rating", "has its end where one of >= <= == != > < is due"),
        ("rating = 5", "has '=' at character 8 where one of"),
        ("rating >= five", "has 'five' at character 11 where a number is due"),
        ("5 >= rating", "has '5' at character 1 where a column's name is due"),
        ("rating >= 5 dwell > 1", "has 'dwell' at character 13 where and, or, or the end is due"),
        ("(rating >= 5", "has its end where a closing bracket is due"),
        ("rating >= 5)", r"has '\)' at character 12"),
        ("rating >= 5 and", "has its end where a column's name is due"),
        ("__import__('os').system('x') == 1", r"has '\(' at character 11"),
        ("rating >= 5; dwell > 1", "has ';' at character 12 where a column, an operator or a number is due"),
        ("rating >= 1e5x", "where a number is due|where a column, an operator or a number is due"),
        ("(" * 60 + "a > 1" + ")" * 60, "nests more than 50 levels"),
        ("not " * 3000 + "a > 1", "nests more than 50 levels"),
    ],
)
def test_rules_that_are_none(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_rule(text)


@given(st.text(max_size=40))
@settings(max_examples=40)
def test_any_text_is_a_rule_or_one_sentence(text: str) -> None:
    try:
        rule = read_rule(text)
    except RecipeError as error:
        assert "clean rule" in str(error)  # noqa: PT017
    else:
        assert rule.columns


# Names that RecBole would misread


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
@settings(max_examples=60, deadline=None)
def test_names_come_back_through_pandas(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    names = [*{name.strip() for name in names} - {""}, "NA", "null", '"', "50%", "%4EA", "[PAD]"]
    names = list(dict.fromkeys(names))
    safe = [safe_token(name) for name in names]
    assert len(set(safe)) == len(names)
    assert "[PAD]" not in safe
    path = tmp_path_factory.mktemp("names") / "x.inter"
    path.write_text("user_id:token\titem_id:token\n" + "".join(f"{name}\ti\n" for name in safe), encoding="utf-8")
    read = pd.read_csv(path, delimiter="\t", dtype=str, encoding="utf-8", engine="python")
    assert read["user_id:token"].tolist() == safe


def test_plain_names_stay() -> None:
    for name in ("ann", "Ünal", "o'neil", "a b", "007", "x+y", "Nana"):
        assert safe_token(name) == name
    assert safe_token("NA") == "%4EA"
    assert safe_token('a"\t%') == "a%22%09%25"


# The split


def expected_split(rows: list[Row], by_time: bool, seed: int = 2020) -> dict[str, list[tuple[str, ...]]]:
    """The same by a plain loop."""
    draws = np.random.default_rng(seed).random(len(rows))
    first: dict[tuple[str, str], int] = {}
    for k, row in enumerate(rows):
        if row["user"] and row["item"]:
            first.setdefault((row["user"], row["item"]), k)
    kept = sorted(first.values())
    fate: dict[int, str] = {}
    if by_time:
        for user in {rows[k]["user"] for k in kept}:
            history = sorted((k for k in kept if rows[k]["user"] == user), key=lambda k: (float(rows[k]["ts"]), k))
            n = len(history)
            for place, k in enumerate(history):
                fate[k] = "train" if place < max(n * 8 // 10, 1) else "valid" if place < n * 9 // 10 else "test"
    else:
        fate = {k: "train" if draws[k] < 0.8 else "valid" if draws[k] < 0.9 else "test" for k in kept}
    known = {rows[k]["item"] for k in kept if fate[k] == "train"}
    result: dict[str, list[tuple[str, ...]]] = {split: [] for split in SPLITS}
    for k in kept:
        row = rows[k]
        if row["item"] not in known:
            continue
        line = (row["user"], row["item"], f"{float(row['dwell']):g}" if row["dwell"] else "")
        line += (row["ts"],) if by_time else ()
        result[fate[k]].append(line)
        if fate[k] == "test" and row["dwell"] and float(row["dwell"]) > 10:
            result["clean_test"].append(line)
    return result


@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("n_items", [12, 300])
def test_the_split_is_a_plain_loops(tmp_path: Path, by_time: bool, n_items: int) -> None:
    rows = clicks(n_items=n_items)
    folder = build(write(tmp_path / "my clicks.csv", rows), tmp_path / "out", time="ts" if by_time else None)
    assert folder == tmp_path / "out" / "clean" / "my-clicks"
    expected = expected_split(rows, by_time)
    for split in SPLITS:
        assert read_inter(folder, split) == expected[split], split
    manifest = data_recipes.verify_folder(folder)
    assert manifest["seed"] == (None if by_time else 2020)
    for split, wanted in expected.items():
        pairs = {line[:2] for line in wanted}
        users, items = {user for user, _ in pairs}, {item for _, item in pairs}
        strangers = users - {line[0] for line in expected["train"]}
        found = manifest["splits"][split]
        assert (found["users"], found["items"], found["rows"]) == (len(users), len(items), len(wanted))
        assert (found["duplicates"], found["users_not_in_train"]) == (0, len(strangers))
        assert found["items_not_in_train"] == 0
    named = [row for row in rows if row["user"] and row["item"]]
    distinct = {(row["user"], row["item"]) for row in named}
    assert manifest["source"]["rows"] == len(named)
    assert any(f"{len(named) - len(distinct):,} rows repeat" in note for note in manifest["notes"])
    assert any(f"{len(rows) - len(named):,} rows without a user or an item" in note for note in manifest["notes"])
    lost = len(distinct) - sum(len(expected[split]) for split in SPLITS[:3])
    assert sum(manifest["dropped"].values()) == lost
    assert (lost > 0) == (n_items == 300)


@given(st.integers(1, 9), st.integers(1, 30), st.booleans())
@settings(max_examples=15, deadline=None)
def test_blocks_and_buckets_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, block: int, bucket: int, by_time: bool
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    table = Table(write(folder / "a.csv", clicks(120)), "user", "item", "ts" if by_time else None, ("dwell",))
    found = []
    for place, sizes in (("whole", {}), ("parts", {"block_rows": block, "bucket_rows": bucket})):
        (folder / place).mkdir()
        split = TableSplit(table, read_rule("dwell > 10"), Cut(by_time, 7), folder / place, **sizes)  # type: ignore[arg-type]
        split.read()
        files = split.write("a", "dwell")
        found.append((split.counts, {name: path.read_bytes() for name, path in files.items()}))
    assert found[0] == found[1]


def test_every_column_of_the_rule_is_kept_and_the_manifest_has_the_rule(tmp_path: Path) -> None:
    rows = clicks()
    rule = "dwell > 10 and ts < 40"
    folder = build(write(tmp_path / "a.csv", rows), tmp_path / "out", clean=rule)
    manifest = data_recipes.load_manifest(folder)
    assert manifest["clean"] == {"rule": rule, "rating": "dwell"}
    assert manifest["columns"] == {"rating": "dwell", "ts": "ts"}
    header = (folder / "a.test.inter").read_text().splitlines()[0]
    assert header == "user_id:token\titem_id:token\trating:float\tts:float"
    test, clean = read_inter(folder, "test"), read_inter(folder, "clean_test")
    assert clean == [row for row in test if row[2] and float(row[2]) > 10 and float(row[3]) < 40]


def test_columns_whose_names_mean_something_else_are_kept_under_others(tmp_path: Path) -> None:
    rows = [{**row, "rating": row["dwell"], "read time": row["ts"], "table_rating": row["ts"]} for row in clicks()]
    rule = "rating > 10 and `read time` < 40 and table_rating < 41"
    folder = build(write(tmp_path / "a.csv", rows), tmp_path / "out", clean=rule, rating="dwell", time="ts")
    names = {"table_rating_": "rating", "table_read_time": "read time", "table_rating": "table_rating"}
    assert data_recipes.load_manifest(folder)["columns"] == {"rating": "dwell", "timestamp": "ts", **names}
    header = (folder / "a.test.inter").read_text().splitlines()[0]
    kept = ":float\t".join(["rating", "timestamp", *names])
    assert header == f"user_id:token\titem_id:token\t{kept}:float"
    assert all(row[2] == row[4] and row[3] == row[5] == row[6] for row in read_inter(folder, "train"))


def test_another_seed_is_another_split_and_the_same_seed_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", clicks())
    folders = [build(source, tmp_path / str(k), seed=seed) for k, seed in enumerate((1, 1, 2))]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] != contents[2]
    assert not list((tmp_path / "0").glob(".*"))


def test_forms_of_the_table(tmp_path: Path) -> None:
    """Gzip, tabs, another encoding, quotes, a byte order mark: the same rows."""
    rows = clicks(200)
    rows[3]["user"] = rows[9]["user"] = "Zoë, the first"
    plain = build(write(tmp_path / "a.csv", rows), tmp_path / "plain", name="x")
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    forms = {
        "gz": (packed, {}),
        "tab": (write(tmp_path / "a.tsv", rows, "\t"), {"separator": "tab"}),
        "latin": (write(tmp_path / "l.csv", rows, encoding="latin-1"), {"encoding": "latin-1"}),
        "utf16": (write(tmp_path / "w.csv", rows, encoding="utf-16"), {"encoding": "utf-16"}),
        "bom": (write(tmp_path / "b.csv", rows, encoding="utf-8-sig"), {}),
    }
    for name, (source, options) in forms.items():
        folder = build(source, tmp_path / name, name="x", **options)
        for split in SPLITS:
            assert read_inter(folder, split) == read_inter(plain, split), name
    assert any(row[0] == "Zoë, the first" for split in SPLITS for row in read_inter(plain, split))


def test_iso_dates_are_times(tmp_path: Path) -> None:
    rows = clicks()
    for row in rows:
        row["ts"] = f"2010-01-{int(row['ts']) % 28 + 1:02d} 08:00:00+00:00"
    folder = build(write(tmp_path / "a.csv", rows), tmp_path / "out", time="ts")
    times = [int(row[3]) for row in read_inter(folder, "train")]
    assert min(times) == 1_262_332_800  # 2010-01-01, 8 o'clock UTC
    assert {(time - min(times)) % 86_400 for time in times} == {0}


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from data_recipes.clean_rule import read_rule
from data_recipes.csv_rows import Table
from data_recipes.table_split import Cut, TableSplit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = Table(Path(sys.argv[1]), "user", "item", None, ("dwell",))
work = Path(sys.argv[1]).with_suffix(".work")
work.mkdir()
split = TableSplit(table, read_rule("dwell > 10"), Cut(False, 0), work, block_rows=5000, bucket_rows=20000)
split.read()
split.write("a", "dwell")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Rows of the large table alone would take some 100 MB as Python text."""
    grown = {}
    for name, n in (("small", 20_000), ("large", 300_000)):
        path = tmp_path / f"{name}.csv"
        users, items = np.random.default_rng(1).integers((n, 500), size=(n, 2)).T
        body = "".join(f"user{u},item{i},{u % 40}\n" for u, i in zip(users.tolist(), items.tolist(), strict=True))
        path.write_text("user,item,dwell\n" + body)
        ran = subprocess.run(
            [sys.executable, "-c", MEMORY_SCRIPT, str(path)], env=environment(), capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        grown[name] = int(ran.stdout) / 1024
    assert grown["large"] < grown["small"] + 12, grown
