from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recdenoise.errors import UserError
from recdenoise.recommendation_files import evaluate_files, read_recommendations, read_truth


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


TRUTH = "user,item\nanna,tea\nanna,cake\nbo,tea\ncy,jam\n"
# anna: cake first, then milk, tea third; bo: jam only; dee is not in the truth; cy has nothing.
BY_RANK = "user,item,rank\nanna,tea,3\nanna,cake,1\nanna,milk,2\nbo,jam,1\ndee,tea,1\n"
BY_SCORE = "user\titem\tscore\nanna\ttea\t-1e-3\nanna\tcake\t0.9\nanna\tmilk\t0.5\nbo\tjam\t2\ndee\ttea\t1\n"
ATOMIC = BY_SCORE.replace("user\titem\tscore", "user_id:token\titem_id:token\trating:float").replace("\n", "\r\n")
BARE = "anna\tcake\t9\nanna\tmilk\t8\nanna\ttea\t7\nbo\tjam\t1\ndee\ttea\t5\n"
IN_ORDER = "anna,cake\nanna,milk\nbo,jam\nanna,tea\ndee,tea\n"


@pytest.mark.parametrize(
    "text", [BY_RANK, BY_SCORE, ATOMIC, BARE, IN_ORDER], ids=["rank", "score", "inter", "bare", "order"]
)
@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_every_layout_gives_the_same_answer(tmp_path: Path, text: str, suffix: str) -> None:
    lists, truth = write(tmp_path, f"lists.{suffix}", text), write(tmp_path, f"truth.{suffix}", TRUTH)
    result = evaluate_files(lists, truth, [1, 3], ["recall", "ndcg", "hit@2"])
    assert result.user_tokens == ("anna", "bo", "cy")
    assert result.per_user["recall@1"].tolist() == [0.5, 0.0, 0.0]
    assert result.per_user["recall@3"].tolist() == [1.0, 0.0, 0.0]
    assert result.mean["hit@2"] == pytest.approx(1 / 3)
    ideal = 1 + 1 / np.log2(3)
    assert result.mean["ndcg@3"] == pytest.approx((1 + 1 / 2) / ideal / 3, abs=1e-12)
    assert result.counts == {
        "users_without_recommendations": 1,
        "lists_shorter_than_k": 2,
        "users_ignored": 1,
        "repeated_truth": 0,
    }
    assert result.to_dict(per_user=True)["users"] == ["anna", "bo", "cy"]


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    lists = write(tmp_path, "lists.csv", "user,item,score\n" + "".join(f"u,{i},1\n" for i in (5, 3, 9, 1)))
    for place, item in enumerate((5, 3, 9, 1), start=1):
        truth = write(tmp_path, "truth.csv", f"u,{item}\n")
        assert evaluate_files(lists, truth, [4], ["mrr"]).mean["mrr@4"] == 1 / place


def test_tokens_are_strings(tmp_path: Path) -> None:
    truth = write(tmp_path, "truth.csv", 'user,item\n007,NA\n7,"a, b"\nnan,é\n')
    lists = write(tmp_path, "lists.csv", '\ufeffuser,item,rank\n7,NA,1\n7,"a, b",2\n007,NA,1\nnan,é,1\n\n')
    result = evaluate_files(lists, truth, [2], ["mrr"])
    assert dict(zip(result.user_tokens or (), result.per_user["mrr@2"].tolist(), strict=True)) == {
        "007": 1.0,
        "7": 0.5,
        "nan": 1.0,
    }


def test_train_and_masks_give_the_clean_protocol(tmp_path: Path) -> None:
    lists = write(tmp_path, "lists.csv", BY_RANK)
    truth = write(tmp_path, "truth.csv", TRUTH)
    train = write(tmp_path, "train.csv", "user,item\nanna,jam\nbo,milk\nzoe,new\n")
    valid = write(tmp_path, "valid.csv", "anna,cake\n")
    paper = evaluate_files(lists, truth, [3], ["recall"], train=train, masked=[train, valid])
    assert (paper.n_users, paper.n_unseen_users, paper.n_masked_truth) == (3, 1, 1)
    assert paper.cold == {"recall@3": 0.0}
    clean = evaluate_files(
        lists,
        truth,
        [3],
        ["recall"],
        train=train,
        masked=[train, valid],
        keep_unseen_users=False,
        drop_masked_truth=True,
    )
    assert clean.user_tokens == ("anna", "bo")
    assert clean.per_user["recall@3"].tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="needs the files of masked pairs"):
        evaluate_files(lists, truth, [3], drop_masked_truth=True)


@pytest.mark.parametrize(
    "text",
    [
        "user_id:token\titem_id:token\trating:float\nu\ta\t\nu\tb\t5\n",
        "user\titem\trank\nu\ta\tgood\nu\tb\t\n",
        "u\ta\t\nu\tb\thigh\n",
        "u\ta\tnan\nu\tb\n",
    ],
)
def test_true_pairs_need_no_numbers(tmp_path: Path, text: str) -> None:
    """A clean_test.inter has empty ratings where the table had none."""
    pairs = write(tmp_path, "pairs.inter", text)
    lists = write(tmp_path, "lists.csv", "u,b\nu,a\n")
    assert evaluate_files(lists, pairs, [1], ["hit"]).mean["hit@1"] == 1.0
    other = write(tmp_path, "other.csv", "u,c\n")
    masked = evaluate_files(lists, other, [2], ["hit"], train=pairs, masked=[pairs])
    assert masked.counts["lists_shorter_than_k"] == 0
    with pytest.raises(UserError, match=r"pairs\.inter, line [123]"):
        read_recommendations(pairs)


def test_words_where_a_number_is_due_are_no_pair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"truth\.csv, line 1: 'value' is no number; a header names the columns user"):
        read_truth(write(tmp_path, "truth.csv", "uid,iid,value\na,b,1\n"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["\t", ","], ids=["tab", "comma"])
def test_lines_may_end_as_on_any_system(tmp_path: Path, end: str, mark: str) -> None:
    text = end.join(["user,item", "u,a", "u,b", ""]).replace(",", mark)
    assert read_truth(write(tmp_path, "pairs.txt", text)).items.tolist() == ["a", "b"]
    with pytest.raises(UserError, match=r"bad\.txt, line 3: the item is missing"):
        read_truth(write(tmp_path, "bad.txt", text.replace(f"u{mark}b", "u")))


def test_quotation_marks_are_letters_between_tabs(tmp_path: Path) -> None:
    """Line 1 is read as every other line is."""
    pairs = read_truth(write(tmp_path, "pairs.tsv", '"Up\tu\t5\n"Up"\tv\t4\n'))
    assert (pairs.users.tolist(), pairs.items.tolist()) == (['"Up', '"Up"'], ["u", "v"])
    quoted = read_truth(write(tmp_path, "pairs.csv", '"a, b",u\nc,"d, e"\n'))
    assert (quoted.users.tolist(), quoted.items.tolist()) == (["a, b", "c"], ["u", "d, e"])


def test_repeated_truth_counts_once(tmp_path: Path) -> None:
    truth = write(tmp_path, "truth.tsv", "u\ta\t5\r\nu\ta\t4\r\nu\tb\t5\r\n")
    result = evaluate_files(write(tmp_path, "lists.csv", "u,a\n"), truth, [1], ["recall"])
    assert result.mean["recall@1"] == 0.5
    assert result.counts["repeated_truth"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,score\na,b,1\na,c,high\n", r"bad\.csv, line 3: the score 'high' is not a finite number"),
        ("user,item,score\na,b,nan\n", r"bad\.csv, line 2: the score 'nan' is not a finite number"),
        ("user,item,rank\na,b,1\n\na,c,x\n", r"bad\.csv, line 4: the rank 'x'"),
        ("user,item,score\na,b,1\na,c\n", r"bad\.csv, line 3: the score is missing"),
        ("user,item,score\na,b,1\n,c,2\n", r"bad\.csv, line 3: the user is missing"),
        ("a,b\na\n", r"bad\.csv, line 2: the item is missing"),
        ("a,b,1\na,c,2,3\n", r"bad\.csv, line 2: more than the 3 columns of line 1"),
        ("a,b,1\na,c,2,3,4,5\n", r"bad\.csv, line 2: more than the 3 columns of line 1"),
        ("user,item,score\na,b,1\nc,b,1\na,b,2\n", r"bad\.csv, line 4: item 'b' was recommended to user 'a' before"),
        ("a,b,1,2\n", r"bad\.csv, line 1: without a header a file has 2 or 3 columns"),
        ("user,thing\na,b\n", r"bad\.csv, line 1: a header must name both"),
        ("uid,iid,value\na,b,1\n", r"bad\.csv, line 1: the score 'value' is not a finite number"),
        ("a b 1\n", r"bad\.csv, line 1: expected user and item separated by a tab or a comma"),
        ("", r"bad\.csv is empty"),
        (" \n\n", r"bad\.csv is empty"),
        ("user,item\n", r"bad\.csv holds no pair"),
        ('a,b\n"a,c\na,d\n', r"bad\.csv, line 2: a quotation mark is never closed"),
        ('"a,b\nc",d\n', r"bad\.csv, line 1: a quoted value runs over the end of the line"),
        ('"a\rb",d\n', r"bad\.csv, line 1"),
        ("a" * 140_000 + ",b\n", r"bad\.csv, line 1 cannot be read as a row of a table: field larger than"),
        ('a,b\n"a,c\na",d\n', r"bad\.csv, line 2: a quoted value runs over the end of the line"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recommendations(write(tmp_path, "bad.csv", text))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*absent\.csv"):
        read_truth(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_truth(tmp_path)
    whole = gzip.compress(("user,item\n" + "".join(f"u{n},i{n * 7919}\n" for n in range(500))).encode())
    for cut in (5, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.csv.gz").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cut\.csv\.gz is a damaged or truncated gzip file"):
            read_truth(tmp_path / "cut.csv.gz")
    (tmp_path / "plain.csv.gz").write_bytes(b"user,item\na,b\n")
    with pytest.raises(UserError, match="damaged or truncated gzip"):
        read_truth(tmp_path / "plain.csv.gz")
    (tmp_path / "latin.csv").write_bytes("user,item\na,\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_truth(tmp_path / "latin.csv")


def test_many_rows_equal_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wanted = {(f"u{u}", f"i{i}") for u, i in zip(rng.integers(0, 80, 400), rng.integers(0, 50, 400), strict=True)}
    pairs = sorted(
        {(int(u), int(i)) for u, i in zip(rng.integers(0, 90, 2000), rng.integers(0, 60, 2000), strict=True)}
    )
    scored = [(f"u{u}", f"i{i}", int(s)) for (u, i), s in zip(pairs, rng.integers(0, 9, len(pairs)), strict=True)]
    rng.shuffle(scored)  # type: ignore[arg-type]
    lists = write(tmp_path, "l.tsv", "user\titem\tscore\n" + "".join("\t".join(map(str, row)) + "\n" for row in scored))
    truth = write(tmp_path, "t.tsv", "".join(f"{u}\t{i}\n" for u, i in sorted(wanted)))
    result = evaluate_files(lists, truth, [10], ["recall"])
    for user, value in zip(result.user_tokens or (), result.per_user["recall@10"].tolist(), strict=True):
        mine = [row for row in scored if str(row[0]) == user]
        best = [str(row[1]) for row in sorted(mine, key=lambda row: -int(row[2]))][:10]
        truth_items = {i for u, i in wanted if u == user}
        assert value == pytest.approx(len(truth_items & set(best)) / len(truth_items), abs=1e-12)


def test_published_files_are_read(real_data: Path) -> None:
    truth = read_truth(real_data / "recsys" / "ml-100k" / "ml-100k.test.negative")
    assert len(truth) == 3_594
    assert len(set(truth.users)) == 707


def test_importing_pulls_no_pandas() -> None:
    code = "import sys, recdenoise.recommendation_files; sys.exit('pandas' in sys.modules or 'recbole' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
