"""`find-noise`: the order and the file, what is known about noise and how, and what bad input gets."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import data_recipes
from data_recipes.manifest import sha256
from recdenoise import detection
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.experiment import Run, load
from recdenoise.reports import suspects
from tests.built_folder import Split, splits, write_built
from tests.command import figures, mistake, output, train


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Run:
    return load(trained)


def ratings() -> np.ndarray:
    return np.asarray(splits("paper")["train"].ratings)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_all_interactions_are_ranked_and_written(trained: Path, loaded: Run, here: Path, ending: str) -> None:
    path = here / f"s.{ending}"
    printed = output("find-noise", trained, "--out", path, "--top", "3")
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert list(table.columns) == ["row", "user", "item", "rating", "p_noise", "noise"]
    part = splits("paper")["train"]
    assert sorted(table["row"]) == list(range(len(part)))
    np.testing.assert_array_equal(table["user"], part.users[table["row"]])
    np.testing.assert_array_equal(table["item"], part.items[table["row"]])
    p_clean = loaded.denoiser.clean_probability().double().numpy()
    np.testing.assert_allclose(table["p_noise"], 1 - p_clean[table["row"]], rtol=1e-9)
    assert table["p_noise"].is_monotonic_decreasing
    first = table.iloc[0]
    assert re.search(rf"│ 1 +│ {first.user} +│ {first['item']} +│ {first.rating:g} +│ {first.p_noise:.4f} ", printed)
    assert "3 most suspicious of 400 training interactions" in printed
    assert "│ 4 " not in printed


def test_measures_are_printed_and_written(trained: Path, loaded: Run, here: Path) -> None:
    printed = output("find-noise", trained, "--clean", "rating >= 5", "--json", "m.json", "--out", "s.csv")
    noise = ratings() < 5
    expected = detection.measure(-loaded.denoiser.clean_probability().numpy(), noise)
    assert f"not rating >= 5, {noise.sum()} of 400 rows" in printed
    assert f"│ this ranking       │ {expected.auc:.4f} │ {expected.average_precision:.4f} " in printed
    assert f"│ guessing           │ 0.5000 │ {noise.mean():.4f} " in printed
    items = splits("paper")["train"].items.tolist()
    rarity = detection.measure([-items.count(item) for item in items], noise)
    assert f"│ rarest items first │ {rarity.auc:.4f} │ {rarity.average_precision:.4f} " in printed
    record = json.loads((here / "m.json").read_text())
    assert record.pop("known") == "not rating >= 5"
    assert record.pop("rarest_first") == pytest.approx(rarity.to_dict())
    assert record == pytest.approx(expected.to_dict())
    assert pd.read_csv("s.csv")["noise"].sum() == noise.sum()


def test_without_a_rule_ratings_below_those_of_the_clean_test_are_noise(loaded: Run) -> None:
    known = suspects.known_noise(loaded)
    assert known is not None
    assert known.words == "rating below 5, the least of the clean test"
    np.testing.assert_array_equal(known.flags, ratings() < 5)


@pytest.mark.parametrize(
    ("rule", "clean"),
    [
        ("rating >= 5", ratings() >= 5),
        ("rating>4.5", ratings() > 4.5),
        (" rating != 2 ", ratings() != 2),
        ("rating == 2", ratings() == 2),
        ("rating < 5e0", ratings() < 5),
        ("rating <= +2", ratings() <= 2),
        ("rating >= 3 and not rating >= 6 or rating < 0", ratings() >= 3),
    ],
)
def test_rules(loaded: Run, rule: str, clean: np.ndarray) -> None:
    known = suspects.known_noise(loaded, clean=rule)
    assert known is not None
    np.testing.assert_array_equal(known.flags, ~clean)


def test_a_plain_method_ranks_by_its_loss(built: Path, here: Path) -> None:
    train(built, "--denoiser", "normal", "--set", "learning_rate=0.05", "--out", "n")
    output("find-noise", "n")
    run = load(here / "n")
    from recdenoise.recbole_adapter.loaders import Pairs

    with torch.no_grad():
        loss = torch.nn.functional.softplus(-run.denoiser.score(Pairs(*run.data.train)))
    table = pd.read_csv(here / "n" / "suspects.csv")
    in_order = loss[torch.as_tensor(table["row"].to_numpy())]
    assert bool((in_order.diff() <= 1e-6).all())
    assert in_order[0] > in_order[-1] + 1e-3


def test_suspicion_beyond_the_reach_of_one_minus_p_keeps_its_order(
    loaded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, and for p below 1e-16 in float64 too, 1 - p is 1 for all of these."""
    p = torch.full((400,), 0.5)
    p[7], p[8], p[9] = 1e-20, 1e-30, 1e-10
    monkeypatch.setattr(loaded.denoiser, "clean_probability", lambda: p)
    table = suspects.suspect_table(loaded)
    assert table["row"].tolist()[:4] == [8, 7, 9, 0]
    known = suspects.KnownNoise(np.arange(400) == 8, "")
    assert suspects.measure(loaded, known).auc == 1.0


def flagless(tmp_path: Path, column: bytes | None = None, cell: bytes = b"0") -> Path:
    """A folder whose training rows all have rating 5, so that nothing is known, or a column more."""
    import hashlib

    def edit(parts: Split) -> None:
        np.asarray(parts["train"].ratings)[:] = 5

    folder = write_built(tmp_path / "d", ("paper",), edit) / "paper" / "tiny"
    if column is not None:
        path = folder / "tiny.train.inter"
        lines = path.read_bytes().splitlines()
        cells = [column, b"1", cell] + [b"0"] * (len(lines) - 3)
        path.write_bytes(b"".join(a + b"\t" + b + b"\n" for a, b in zip(lines, cells, strict=True)))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder.parent.parent


def test_a_table_of_ones_own_brings_its_rule(here: Path) -> None:
    """The recipe keeps the rule's first column as the rating; the rule may be given in the table's words."""
    rng = np.random.default_rng(0)
    rows = [f"p{u},page {i},{rng.integers(30)}" for u in range(20) for i in rng.choice(30, 12, replace=False)]
    rows[0] = rows[0].rpartition(",")[0] + ","  # an empty cell is not clean
    (here / "clicks.csv").write_text("\n".join(["who,page,dwell", *rows]) + "\n")
    words = ("--from", "clicks.csv", "--user", "who", "--item", "page", "--clean", "dwell > 10", "--out", "data")
    output("data", "build", "csv", *words)
    train(here / "data", "--out", "n")
    part = suspects.read_inter(here / "data/clean/clicks/clicks.train.inter").rows
    dwell = pd.to_numeric(part["rating"])
    assert dwell.isna().sum() == 1
    noise = ~(dwell > 10)
    assert f"not dwell > 10, {noise.sum()} of {len(part)} rows" in output("find-noise", "n")
    assert f"not dwell > 20, {(~(dwell > 20)).sum()} of" in output("find-noise", "n", "--clean", "dwell > 20")
    assert "has no column 'stars'; it has user_id, item_id, rating, dwell." in mistake(
        "find-noise", "n", "--clean", "stars > 2"
    )
    assert data_recipes.load_manifest(here / "data/clean/clicks")["clean"]["rule"] == "dwell > 10"


def a_table(here: Path, options: str = "", columns: str = "dwell,rating") -> tuple[Path, pd.DataFrame]:
    """A folder built from a table whose two last columns have nothing to do with each other, and the table."""
    rng = np.random.default_rng(0)
    pairs = [(f"p{u}", f"page {i}") for u in range(20) for i in rng.choice(30, 12, replace=False)]
    table = pd.DataFrame(pairs, columns=["who", "page"])
    for name in columns.split(","):
        table[name] = rng.integers(1, 6, len(table))
    table.to_csv(here / "clicks.csv", index=False)
    words = ("--from", "clicks.csv", "--user", "who", "--item", "page", "--out", "data")
    output("data", "build", "csv", *words, *shlex.split(options))
    return here / "data/clean/clicks", table.set_index(["who", "page"])


def looked_up(folder: Path, table: pd.DataFrame, column: str) -> pd.Series:
    """A column of the table for the training rows, in their order."""
    part = suspects.read_inter(folder / "clicks.train.inter").rows
    return table.loc[list(zip(part["user_id"], part["item_id"], strict=True)), column]


@pytest.mark.parametrize(
    ("columns", "options", "rule"),
    [
        ("dwell,rating", "--rating dwell", "rating >= 4"),
        ("ts,timestamp", "--time ts --rating ts", "timestamp >= 4"),
        ("ts,timestamp", "--time ts", "ts >= 1 and timestamp >= 4"),
        ("dwell,timestamp", "--time timestamp --rating dwell", "timestamp >= 4"),
        ("dwell,read time", "", "dwell >= 1 and `read time` >= 4"),
        ("dwell,weight", "--rating dwell", "weight >= 4"),
    ],
)
def test_the_rule_of_a_table_is_applied_to_the_column_that_it_names(
    here: Path, columns: str, options: str, rule: str
) -> None:
    """Not to the one that the files call so."""
    folder, table = a_table(here, f"{options} --clean {shlex.quote(rule)}", columns)
    column = columns.split(",")[1]
    own = suspects.table_columns(data_recipes.load_manifest(folder))
    values = looked_up(folder, table, column)
    kept = pd.to_numeric(suspects.read_inter(folder / "clicks.train.inter").rows[own[column]])
    assert kept.tolist() == values.tolist()
    train(here / "data", "--out", "n")
    assert f"not {rule}, {(values < 4).sum()} of {len(values)} rows" in output("find-noise", "n")
    asked = f"`{column}` >= 3"
    assert f"not {asked}, {(values < 3).sum()} of" in output("find-noise", "n", "--clean", asked)


def test_an_older_folder_that_lost_the_rules_column_says_so(here: Path) -> None:
    folder, _ = a_table(here, "--rating dwell --clean 'rating >= 4'")
    manifest = data_recipes.load_manifest(folder)
    del manifest["columns"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    train(here / "data", "--out", "n")
    printed = output("find-noise", "n")
    assert "was built by 'rating >= 4', and its files do not keep the column 'rating'. --flag or --clean" in printed
    assert "known noise" not in printed


def test_without_a_rule_no_rating_of_the_whole_test_is_noise(here: Path) -> None:
    folder, _ = a_table(here, "--rating rating")
    path = folder / "clicks.train.inter"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].rpartition("\t")[0] + "\t0.5"  # lower than all of the test
    path.write_text("\n".join(lines) + "\n")
    manifest = data_recipes.load_manifest(folder)
    manifest["files"][path.name] = sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    train(here / "data", "--out", "n")
    assert "No noise is known here: no column, rule or rating says it." in output("find-noise", "n")


def test_empty_ratings_stay_empty(tmp_path: Path, here: Path) -> None:
    """RecBole fills in their mean."""
    folder = flagless(tmp_path) / "paper" / "tiny"
    path = folder / "tiny.train.inter"
    lines = path.read_text().splitlines()
    for k in range(1, 31):
        lines[k] = lines[k].rpartition("\t")[0] + "\t" + ("" if k <= 20 else "1")
    path.write_text("\n".join(lines) + "\n")
    manifest = data_recipes.load_manifest(folder)
    manifest["files"][path.name] = sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    train(folder, "--out", "n")
    printed = output("find-noise", "n", "--top", "400")
    assert "rating below 5, the least of the clean test, 10 of 400 rows" in printed
    assert "nan" not in printed
    table = pd.read_csv("n/suspects.csv").sort_values("row")
    assert table["rating"].isna().tolist() == [True] * 20 + [False] * 380
    output("find-noise", "n", "--clean", "rating >= 2")
    assert pd.read_csv("n/suspects.csv")["noise"].sum() == 30
    printed = output("inspect", "n")
    assert list(figures(printed)) == ["1", "5"]
    assert figures(printed)["5"][1] == 370
    assert pd.read_parquet("n/p_clean.parquet")["rating"].isna().sum() == 20


def test_where_no_noise_is_known_the_ranking_is_all(tmp_path: Path, here: Path) -> None:
    train(flagless(tmp_path), "--out", "n")
    printed = output("find-noise", "n", "--top", "0")
    assert "No noise is known here" in printed
    assert "most suspicious" not in printed
    assert "noise" not in pd.read_csv("n/suspects.csv")
    assert "nothing to write" in mistake("find-noise", "n", "--json", "m.json")
    assert "none are noise" in mistake("find-noise", "n", "--clean", "rating >= 5")
    assert "all are noise" in mistake("find-noise", "n", "--clean", "rating < 5")


def test_a_flag_column_of_ones_own_is_joined_by_row(tmp_path: Path, here: Path) -> None:
    train(flagless(tmp_path, b"bot:float"), "--out", "n")
    assert "bot is 1, 1 of 400 rows" in output("find-noise", "n", "--flag", "bot")
    table = pd.read_csv("n/suspects.csv")
    assert table.loc[table["noise"] == 1, "row"].tolist() == [0]


@pytest.mark.parametrize(("cell", "said"), [(b"2", "holds 2, and a flag is 0 or 1"), (b"x", "'x' in column 'bot'")])
def test_a_flag_that_is_none_is_named_by_its_line(tmp_path: Path, here: Path, cell: bytes, said: str) -> None:
    train(flagless(tmp_path, b"bot:token", cell), "--out", "n")
    message = mistake("find-noise", "n", "--flag", "bot")
    assert said in message
    assert "tiny.train.inter, line 3:" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--flag", "bot"), "has no column 'bot'; it has user_id, item_id, rating."),
        (("--flag", "rating"), "line 2: column 'rating' holds"),
        (("--flag", "rating", "--clean", "rating >= 5"), "--flag or --clean, not both"),
        (("--clean", "stars >= 5"), "has no column 'stars'; it has user_id, item_id, rating."),
        (("--clean", "user_id > 1"), "'u1' in column 'user_id' is not a number"),
        (("--clean", "rating"), "The clean rule 'rating' has its end where one of >="),
        (("--clean", "rating >= five"), "has 'five' at character 11 where a number is due"),
        (("--clean", "rating >= 1"), "none are noise"),
        (("--out", "s.txt"), "s.txt must end in .parquet or .csv"),
        (("--top", "-1"), "-1 is not in the range"),
    ],
)
def test_mistakes_write_nothing(trained: Path, here: Path, words: tuple[str, ...], said: str) -> None:
    assert said in mistake("find-noise", trained, *words)
    assert not list(here.iterdir())
    assert not (trained / "suspects.csv").exists()


def test_a_run_that_filters_its_rows_is_refused(loaded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = loaded.data.train
    monkeypatch.setattr(suspects, "probability_table", lambda run: pd.DataFrame({"p_clean": np.zeros(len(users))}))
    object.__setattr__(loaded.data, "train", (users.flip(0), items.flip(0)))
    try:
        with pytest.raises(UserError, match="does not train on the rows of"):
            suspects.known_noise(loaded)
    finally:
        object.__setattr__(loaded.data, "train", (users, items))


def test_a_folder_that_is_no_run(here: Path) -> None:
    assert "is not a run" in mistake("find-noise", here)
