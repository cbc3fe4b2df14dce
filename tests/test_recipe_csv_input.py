"""A table of one's own that is bad, disks that are full, two builds at once, the command line."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data_recipes
from data_recipes import RecipeError
from data_recipes.clean_rule import read_rule
from data_recipes.csv_rows import Table, read_blocks
from data_recipes.manifest import sha256
from data_recipes.table_split import Cut, TableSplit
from tests.click_tables import build, clicks, read_inter, write
from tests.command import environment, mistake, output

# Bad input


def spoiled(path: Path, line: int, new: str) -> Path:
    lines = path.read_text().splitlines()
    lines[line - 1] = new
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (None, {"user": "userid"}, r"line 1: there is no column 'userid'; the columns are user, item, dwell, ts"),
        (None, {"clean": "rating >= 5"}, r"there is no column 'rating'"),
        (None, {"time": "when"}, r"there is no column 'when'"),
        (None, {"user": "item"}, "User and item are both the column 'item'"),
        (None, {"split": "time"}, "A split by time needs the column of the time"),
        (None, {"split": "monthly"}, "Unknown split 'monthly'. Valid: random, time"),
        (None, {"separator": ";;"}, "separator ';;' is not one character"),
        (None, {"separator": "tab"}, r"there is no column 'user'.*It looks separated by ',': give --sep"),
        (None, {"encoding": "klingon"}, "There is no encoding 'klingon'"),
        (None, {"encoding": "utf-16"}, r"is not utf-16 text"),
        (None, {"name": "../x"}, r"The name '../x' cannot be a folder's"),
        (None, {"clean": "dwell > 1000"}, r"The clean rule 'dwell > 1000' matches no row of"),
        (None, {"clean": "ts >= 0"}, r"The clean rule 'ts >= 0' matches every one of the 600 rows"),
        ((7, "u 1,i1,12"), {}, r"a\.csv, line 7: 3 cells where the header has 4"),
        ((7, "u 1,i1,12,4,5"), {}, r"a\.csv, line 7: 5 cells where"),
        ((7, "u 1,i1,long,4"), {}, r"a\.csv, line 7: dwell is 'long', which is no number"),
        (
            (7, "u 1,i1,12,yesterday"),
            {"time": "ts"},
            r"line 7: ts is 'yesterday', which is neither a number nor an ISO",
        ),
        ((7, "u 1,i1,12,"), {"time": "ts"}, r"line 7: ts is ''"),
        ((7, "u 1,i1,12,inf"), {"time": "ts"}, r"line 7: ts is 'inf', which is no time"),
        ((1, "user,item,dwell,user"), {}, r"line 1: two columns are called 'user'"),
        (None, {"seed": -1}, "The seed is -1; it must be 0 or more"),
        (None, {"encoding": "base64"}, "There is no encoding 'base64'"),
        (None, {"encoding": "rot13"}, "There is no encoding 'rot13'"),
        ((7, '"u 1,i1,12,4'), {}, r"a\.csv, line 7: the row that begins here.*a quotation mark is never closed"),
        ((601, '"u 1,i1,12,4'), {}, r"a\.csv, line 601: the row that begins here.*a quotation mark is never closed"),
        ((7, "u 1,i1,12,2020-01-02"), {"time": "ts"}, r"line 7: ts is '2020-01-02', a date where the rows before hold"),
    ],
)
def test_bad_tables_are_told_in_one_sentence(
    tmp_path: Path, change: tuple[int, str] | None, options: dict[str, Any], said: str
) -> None:
    source = write(tmp_path / "a.csv", clicks())
    if change is not None:
        spoiled(source, *change)
    with pytest.raises(RecipeError, match=said) as caught:
        build(source, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def truncate(path: Path) -> Path:
    packed = path.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes())[:-200])
    return packed


def truncate_early(path: Path) -> Path:
    packed = path.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes())[:50])
    return packed


def rewrite(text: bytes) -> Callable[[Path], Path]:
    def change(path: Path) -> Path:
        path.write_bytes(text)
        return path

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (truncate, r"a\.csv\.gz is a gzip file that is cut short or broken"),
        (truncate_early, r"a\.csv\.gz is a gzip file that is cut short or broken"),
        (rewrite(b""), r"a\.csv is empty"),
        (rewrite(b"user,item,dwell\n"), r"a\.csv has a header and no rows"),
        (rewrite(b"user,item,dwell\nann\xff,i,3\n"), r"a\.csv is not utf-8 text.*--encoding"),
        (rewrite(b'user,item,dwell\n"ann,i,3\n' + b"x,y,1\n" * 200_000), r"a\.csv, line 2: .*field larger"),
        (rewrite(b"user,item,dwell\nann,i,30\nbob,i,3\n"), r"split of .*a\.csv would be empty: it needs more rows"),
        (lambda path: path.with_name("b.csv"), r"b\.csv does not exist"),
        (lambda path: path.parent, r"is a folder; give the table itself"),
    ],
)
def test_bad_files_are_told_in_one_sentence(tmp_path: Path, change: Callable[[Path], Path], said: str) -> None:
    source = change(write(tmp_path / "a.csv", clicks()))
    with pytest.raises(RecipeError, match=said):
        build(source, tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """A zip file, or a packed tar file, by the name's ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, data in members.items():
                zipped.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as tarred:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tarred.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize("place", ["", "shop-main/export/"])
def test_the_only_file_of_an_archive_is_the_table(tmp_path: Path, ending: str, place: str) -> None:
    text = write(tmp_path / "clicks.csv", clicks()).read_bytes()
    plain = build(tmp_path / "clicks.csv", tmp_path / "plain")
    source = packed(tmp_path / f"a.{ending}", {f"{place}clicks.csv": text, "__MACOSX/._clicks.csv": b"x"})
    folder = build(source, tmp_path / "out")
    assert folder == tmp_path / "out" / "clean" / "clicks"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in plain.iterdir()
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clean"]


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"x/b.csv": b"1", "a.csv": b"2"}, r"/a\.{} holds 2 files: a\.csv, x/b\.csv; unpack it and give one of them"),
        ({f"{k}.csv": b"1" for k in range(8)}, r"/a\.{} holds 8 files: 0\.csv, .*4\.csv and 3 more; unpack it"),
        ({".hidden": b"1"}, r"/a\.{} holds no file\."),
        ({"c.csv": b"user,item,dwell\nu,i,long\n"}, r"/a\.{}/c\.csv, line 2: dwell is 'long'"),
    ],
)
def test_archives_without_one_table_are_told_by_their_name(
    tmp_path: Path, ending: str, members: dict[str, bytes], said: str
) -> None:
    source = packed(tmp_path / f"a.{ending}", members)
    with pytest.raises(RecipeError, match=said.format(ending)) as caught:
        build(source, tmp_path / "out", name="x")
    assert ".work" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_line_number_counts_quoted_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user,item,dwell\n"two\nlines",i,3\nann,i,long\n')
    with pytest.raises(RecipeError, match=r"a\.csv, line 4: dwell is 'long'"):
        list(read_blocks(Table(path, "user", "item", None, ("dwell",))))


def test_a_quotation_mark_that_is_never_closed_is_told_by_the_line_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user,item,dwell\n"two\nlines",i,3\nann,"i,3\nbob,i,4\ncid,i,5')
    blocks = read_blocks(Table(path, "user", "item", None, ("dwell",)), rows=1)
    assert next(blocks).users == ["two\nlines"]
    with pytest.raises(RecipeError, match=r"a\.csv, line 4: the row that begins here.*unexpected end of data"):
        next(blocks)
    path.write_text("user,item,dwell\nann,i,3")  # no line end at the end is no mistake
    assert [block.users for block in read_blocks(Table(path, "user", "item"))] == [["ann"]]


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize(
    ("times", "said"),
    [
        (("2020-01-02", "20200103"), r"line 3: when is '20200103', a number where the rows before hold dates"),
        (("2020-01-02", "2020-01-03", "5"), r"line 4: when is '5', a number where the rows before hold dates"),
        (("20200103", "7", "2020-01-02"), r"line 4: when is '2020-01-02', a date where the rows before hold numbers"),
    ],
)
def test_numbers_and_dates_do_not_mix(tmp_path: Path, rows: int, times: tuple[str, ...], said: str) -> None:
    """In one block and over several."""
    path = tmp_path / "a.csv"
    path.write_text("user,item,when\n" + "".join(f"u,i,{time}\n" for time in times))
    with pytest.raises(RecipeError, match=said):
        list(read_blocks(Table(path, "user", "item", "when"), rows))


def test_a_table_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", clicks())
    (tmp_path / "work").mkdir()
    split = TableSplit(
        Table(source, "user", "item", None, ("dwell",)), read_rule("dwell > 10"), Cut(False, 0), tmp_path
    )
    split.read()
    write(source, clicks(300))
    with pytest.raises(RecipeError, match=r"a\.csv changed while it was read"):
        split.write("a", "dwell")


def test_the_same_place_for_other_options_is_built_anew(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", clicks())
    first = build(source, tmp_path / "out")
    before = read_inter(first, "clean_test")
    assert read_inter(build(source, tmp_path / "out", clean="dwell > 30"), "clean_test") != before


def test_a_folder_that_is_replaced_by_other_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        write(tmp_path / f"{seed}.csv", clicks(seed=seed))
    words = ("--user", "user", "--item", "item", "--name", "x", "--out", "out")

    def printed(source: str, rule: str) -> str:
        return output("data", "build", "csv", "--from", source, *words, "--clean", rule)

    assert "replaced" not in printed("0.csv", "dwell > 10")
    assert "replaced" not in printed("0.csv", "dwell > 10")
    (tmp_path / "out/clean/x/x.train.inter").write_text("damaged")
    assert "replaced" not in printed("0.csv", "dwell > 10")
    told = "note: out/clean/x was built from the same data in another way and is replaced: runs trained on it"
    assert told in printed("0.csv", "dwell > 30")
    assert told in output("data", "build", "csv", "--from", "0.csv", *words)
    assert told in output("data", "build", "csv", "--from", "0.csv", *words, "--rating", "ts")
    said = printed("1.csv", "dwell > 30")
    old, new = (sha256(tmp_path / f"{seed}.csv")[:12] for seed in (0, 1))
    assert re.search(
        rf"note: out/clean/x was built from other data \(\d+ rows, sha256 {old}\.\.\.; now \d+ rows, sha256 {new}", said
    )


# Disks and processes


BUILD_SCRIPT = """
import resource, signal, sys
import data_recipes
from data_recipes.csv_table import TableOptions, csv_recipe
source, out, most = sys.argv[1:]
if int(most):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
try:
    print(data_recipes.build(csv_recipe(TableOptions("user", "item", "dwell > 10")), out, source)[0])
except data_recipes.RecipeError as error:
    print("refused:", error)
"""


def start(source: Path, out: Path, most: int = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", BUILD_SCRIPT, str(source), str(out), str(most)]
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("most", [4_000, 20_000])
def test_files_that_cannot_grow_leave_nothing(tmp_path: Path, most: int) -> None:
    """The system refuses bytes, as on a full disk: first the buckets', then the finished files'."""
    rows = [{**row, "user": row["user"] and row["user"] + 60 * "x"} for row in clicks(500, n_users=400)]
    ran = start(write(tmp_path / "a.csv", rows), tmp_path / "out", most)
    printed, complaints = ran.communicate(timeout=60)
    assert printed.startswith("refused: Cannot write to "), printed + complaints
    assert "File too large" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_two_processes_at_once_build_one_folder(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", clicks(3000))
    runs = [start(source, tmp_path / "out") for _ in range(2)]
    printed = [run.communicate(timeout=60) for run in runs]
    assert [out.strip() for out, _ in printed] == [str(tmp_path / "out" / "clean" / "a")] * 2, printed
    data_recipes.verify_folder(tmp_path / "out" / "clean" / "a")
    alone = build(source, tmp_path / "alone")
    for path in alone.iterdir():
        assert (tmp_path / "out" / "clean" / "a" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clean"]


# The command line


def test_build_and_train_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = clicks(900, n_items=40)
    rows[5]["user"], rows[6]["item"] = "NA", 'the "best"'
    write(tmp_path / "clicks.csv", rows)
    words = ("--from", "clicks.csv", "--user", "user", "--item", "item", "--clean", "dwell > 10", "--out", "data")
    printed = output("data", "build", "csv", *words)
    assert "clicks, protocol clean" in printed
    assert "2 names that RecBole would misread are percent-encoded" in printed
    assert "all files as built" in output("data", "verify", "data/clean/clicks")
    assert output("data", "verify", "data") == output("data", "verify", "data/clean/clicks")
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path / "cache"))
    assert "has no build of modcloth yet" in mistake("data", "verify", "modcloth")
    shutil.copytree("data/clean/clicks", "cache/modcloth/clean/modcloth")
    assert "cache/modcloth/clean/modcloth: csv, protocol clean, all files" in output("data", "verify", "modcloth")
    options = ("--set", "epochs=1", "--set", "train_batch_size=64", "--set", "embedding_size=8", "--quiet")
    printed = output("train", "--model", "GMF", "--dataset", "data", "--denoiser", "t_ce", *options)
    assert "GMF on data, protocol clean" in printed


def test_mistakes_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", clicks(50))
    assert "data build csv needs --user and --item and --from" in mistake("data", "build", "csv", "--out", "x")
    words = ("--from", "a.csv", "--user", "user", "--item", "item", "--out", "x")
    assert "matches no row of a.csv" in mistake("data", "build", "csv", *words, "--clean", "dwell > 99")
    assert "-1 is not in the range x>=0" in mistake("data", "build", "csv", *words, "--seed", "-1")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes())[:50])
    assert "cut.csv.gz is a gzip file that is cut short" in mistake(
        "data", "build", "csv", "--from", "cut.csv.gz", *words[2:]
    )
    assert "--user, --item describe a table" in mistake("data", "build", "ml-100k", *words)
    assert "has no protocol 'paper'. Valid: clean" in mistake("data", "build", "csv", *words, "--protocol", "paper")
    with pytest.raises(RecipeError, match="csv is a table of one's own"):
        data_recipes.find_recipe("csv")
    assert not (tmp_path / "x").exists()
