"""Injected noise: what is drawn against plain loops and exact shares, and the folder that `corrupt` writes."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import data_recipes
from recdenoise import noise, own_data
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.dataset import load_split
from tests.built_folder import Split, splits, write_built
from tests.command import mistake, output, train

KINDS = tuple(noise.KINDS)

# What is drawn


@given(st.sets(st.integers(0, 29)))
def test_unobserved_numbers_the_missing_keys(observed: set[int]) -> None:
    missing = [key for key in range(30) if key not in observed]
    found = noise.unobserved(np.arange(len(missing)), np.array(sorted(observed), dtype=np.int64))
    assert found.tolist() == missing


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6), st.integers(0, 99))
def test_choose_takes_distinct_places_of_each_group(pairs: list[tuple[int, int]], seed: int) -> None:
    counts, sizes = np.array([min(p) for p in pairs]), np.array([max(p) for p in pairs])
    places = noise.choose(counts, sizes, noise.uniform_draws(seed))
    assert (np.diff(places) > 0).all()
    ends = np.cumsum(sizes)
    owner = np.searchsorted(ends, places, side="right")
    assert np.bincount(owner, minlength=len(pairs)).tolist() == counts.tolist()


@pytest.mark.parametrize("count", [2, 3])  # drawn until distinct, and drawn from a list
def test_every_set_of_places_is_as_likely_as_any_other(count: int) -> None:
    groups = 30_000
    counts, sizes = np.full(groups, count), np.full(groups, 5)
    places = (noise.choose(counts, sizes, noise.uniform_draws(0)) % 5).reshape(groups, count)
    sets = dict.fromkeys(itertools.combinations(range(5), count), 0)
    for chosen in map(tuple, places.tolist()):
        sets[chosen] += 1
    np.testing.assert_allclose([n / groups for n in sets.values()], 0.1, atol=0.007)  # four standard deviations


seeds = st.integers(0, 9)


@settings(max_examples=60)
@given(st.data())
def test_injected_pairs_are_new_distinct_and_as_many_as_asked(data: st.DataObject) -> None:
    n_users, n_items = data.draw(st.integers(1, 5)), data.draw(st.integers(4, 9))
    cell = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    observed = np.array(data.draw(st.lists(cell, min_size=2, max_size=12)), dtype=np.int64)
    others = np.array(data.draw(st.lists(st.integers(0, n_users * n_items - 1), max_size=6)), dtype=np.int64)
    rate, kind = data.draw(st.sampled_from([0.1, 0.3, 0.5])), data.draw(st.sampled_from(KINDS))
    count = int(len(observed) * rate / (1 - rate) + 0.5)
    try:
        users, items = noise.inject(
            observed[:, 0], observed[:, 1], others, n_users, n_items, rate=rate, kind=kind, seed=data.draw(seeds)
        )
    except UserError:
        assume(False)
    assert len(users) == count
    drawn = list(zip(users.tolist(), items.tolist(), strict=True))
    assert len(set(drawn)) == count
    seen = {tuple(row) for row in observed.tolist()} | {divmod(key, n_items) for key in others.tolist()}
    assert not seen & set(drawn)
    assert all(0 <= u < n_users and 0 <= i < n_items for u, i in drawn)
    if kind == "per-user":
        exact = np.bincount(observed[:, 0], minlength=n_users) * rate / (1 - rate)
        assert (np.abs(np.bincount(users, minlength=n_users) - exact) <= 1 + 1e-9).all()


def market(n_users: int = 300, n_items: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Observed pairs of very unequal users and items, without repeats."""
    rng = np.random.default_rng(0)
    chance = np.outer(np.linspace(0.02, 1, n_users), np.linspace(0.01, 0.6, n_items) ** 2)
    users, items = np.nonzero(rng.random((n_users, n_items)) < chance)
    return users, items


def drawn_counts(kind: str, repeats: int = 30) -> np.ndarray:
    """How often every pair is drawn, (users, items), over seeds."""
    users, items = market()
    counts = np.zeros((300, 200))
    for seed in range(repeats):
        counts[noise.inject(users, items, np.array([], dtype=np.int64), 300, 200, rate=0.2, kind=kind, seed=seed)] += 1
    return counts


def test_random_noise_prefers_no_pair() -> None:
    users, items = market()
    counts = drawn_counts("random")
    free = np.ones((300, 200), dtype=bool)
    free[users, items] = False
    assert counts[~free].sum() == 0
    share = counts.sum() / free.sum()
    for axis in (0, 1):
        expected = share * free.sum(axis)
        deviations = (counts.sum(axis) - expected) / np.sqrt(expected)
        assert np.abs(deviations).max() < 4.5


def test_popular_noise_has_the_margins_of_the_data() -> None:
    users, items = market()
    counts = drawn_counts("popular")
    free = np.ones((300, 200))
    free[users, items] = 0
    wanted = np.outer(np.bincount(users, minlength=300), np.bincount(items, minlength=200)) * free
    wanted *= counts.sum() / wanted.sum()
    for axis in (0, 1):
        many = wanted.sum(axis) > 100
        assert many.sum() > 50
        np.testing.assert_allclose(counts.sum(axis)[many], wanted.sum(axis)[many], rtol=0.4)
        assert np.corrcoef(counts.sum(axis), wanted.sum(axis))[0, 1] > 0.97


def test_noise_per_user_follows_the_users_rows() -> None:
    users, _ = market()
    counts = drawn_counts("per-user", repeats=4)
    assert np.abs(counts.sum(1) / 4 - np.bincount(users, minlength=300) * 0.25).max() <= 1


def test_the_same_noise_everywhere() -> None:
    """PCG64's bits are promised to stay: a change here changes everybody's corrupted sets."""
    assert noise.uniform_draws(3, "a")(2).tolist() == [0.8104768057491842, 0.39642399206103507]
    rows = np.arange(1000)
    found = {}
    for kind in KINDS:
        pairs = noise.inject(rows % 70, rows * 37 % 90, np.array([0]), 70, 90, rate=0.2, kind=kind, seed=0)
        found[kind] = hashlib.sha256(np.stack(pairs).astype("<i8").tobytes()).hexdigest()[:8]
    assert found == {"random": "4d65a7ba", "popular": "05992d19", "per-user": "fb186259"}


def test_wide_catalogues_need_no_matrix() -> None:
    """A million users and ten thousand items: their product would not fit."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(10**6, size=50_000), rng.integers(10**4, size=50_000)
    for kind in KINDS:
        found = noise.inject(users, items, np.array([0]), 10**6, 10**4, rate=0.5, kind=kind, seed=1)
        assert len(found[0]) == 50_000
        assert not np.isin(found[0] * 10**4 + found[1], users * 10**4 + items).any()


@pytest.mark.parametrize(
    ("kind", "rate", "said"),
    [
        ("random", 0.8, "needs 24 unobserved pairs, and of 2 users and 5 items only 4 are left"),
        ("popular", 0.3, "rounds found 2 of 3 unobserved pairs"),  # nobody has item 4
        ("per-user", 0.3, "1 users have fewer unobserved ones among its 5 items"),
        ("random", 0.01, "0.01 is less than one row of 6"),
        ("random", 1.0, "between 0 and 1, both excluded"),
        ("random", float("nan"), "between 0 and 1, both excluded"),
        ("rand", 0.2, "Unknown kind of noise 'rand'. Did you mean 'random'"),
    ],
)
def test_what_cannot_be_injected(kind: str, rate: float, said: str) -> None:
    users, items = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 0, 1])
    with pytest.raises(UserError, match=said):
        noise.inject(users, items, np.array([], dtype=np.int64), 2, 5, rate=rate, kind=kind, seed=0)


# The folder


def corrupt(source: Path, out: Path | str, *words: str, protocol: str = "paper") -> Path:
    output("corrupt", source, "--rate", "0.2", "--out", out, "--protocol", protocol, *words)
    return Path(out) / protocol / "tiny"


def inter(folder: Path, split: str) -> pd.DataFrame:
    return own_data.read_inter(folder / f"tiny.{split}.inter").rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_is_the_data_set_and_its_noise(built: Path, here: Path, kind: str) -> None:
    folder = corrupt(built, "noisy", "--kind", kind)
    before = {split: inter(built / "paper" / "tiny", split) for split in own_data.SPLITS}
    after = {split: inter(folder, split) for split in own_data.SPLITS}
    for split, rows in before.items():
        pd.testing.assert_frame_equal(after[split].iloc[: len(rows)][list(rows)], rows)
        assert (after[split]["injected"].iloc[: len(rows)] == "0").all()
    added = after["train"].iloc[400:]
    assert len(added) == 100
    assert set(added["injected"]) == {"1"}
    assert set(added["rating"]) == {"0"}
    assert [len(after[split]) for split in own_data.SPLITS[1:]] == [len(before[s]) for s in own_data.SPLITS[1:]]
    observed = {pair for rows in before.values() for pair in zip(rows["user_id"], rows["item_id"], strict=True)}
    pairs = [*zip(added["user_id"], added["item_id"], strict=True)]
    assert len(set(pairs)) == 100
    assert not observed & set(pairs)
    assert set(added["item_id"]) <= set(before["train"]["item_id"])
    if kind == "per-user":
        assert (added["user_id"].value_counts() <= 3).all()


def test_manifest_and_configuration(built: Path, here: Path) -> None:
    folder = corrupt(built, "noisy", "--seed", "5")
    assert "tiny, corrupted, protocol paper, all files as built" in output("data", "verify", folder)
    manifest, source = (data_recipes.load_manifest(f) for f in (folder, built / "paper" / "tiny"))
    derived = manifest["derived"]
    assert derived["from"]["files"] == source["files"]
    assert {k: derived[k] for k in ("command", "rate", "kind", "seed", "also_valid", "injected", "realised_rate")} == {
        "command": "corrupt",
        "rate": 0.2,
        "kind": "random",
        "seed": 5,
        "also_valid": False,
        "injected": {"train": 100},
        "realised_rate": 0.2,
    }
    assert manifest["source"]["sha256"] == hashlib.sha256((built / "paper/tiny/manifest.json").read_bytes()).hexdigest()
    assert (manifest["seed"], manifest["splits"]["train"]["rows"], manifest["overlaps"]["train & test"]) == (5, 500, 0)
    before, after = (yaml.safe_load((f / "tiny.yaml").read_text()) for f in (built / "paper" / "tiny", folder))
    assert after.pop("load_col") == {"inter": [*before.pop("load_col")["inter"], "injected"]}
    assert after == before


def test_same_input_same_bytes_and_another_seed_others(built: Path, here: Path) -> None:
    trees = []
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        folder = corrupt(built, out, "--seed", seed)
        trees.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert trees[0] == trees[1]
    assert trees[0]["tiny.train.inter"] != trees[2]["tiny.train.inter"]
    stamp = (here / "a/paper/tiny/manifest.json").stat().st_mtime_ns
    corrupt(built, "a", "--seed", "1")  # again: it is there already
    assert (here / "a/paper/tiny/manifest.json").stat().st_mtime_ns == stamp


def test_validation_is_left_alone_unless_asked(built: Path, here: Path) -> None:
    folder = corrupt(built, "noisy", "--also-valid", protocol="clean")
    valid = inter(folder, "valid")
    n = len(splits("clean")["valid"])
    assert (valid["injected"] == "1").sum() == len(valid) - n == n // 4
    pairs = [{*zip(inter(folder, s)["user_id"], inter(folder, s)["item_id"], strict=True)} for s in own_data.SPLITS]
    assert not pairs[0] & pairs[1]
    assert not pairs[1] & pairs[2]
    derived = data_recipes.load_manifest(folder)["derived"]
    assert derived["injected"] == {"train": 100, "valid": n // 4}
    assert (derived["realised_rate"], derived["realised_rate_valid"]) == (0.2, (n // 4) / (n + n // 4))
    assert inter(corrupt(built, "plain", protocol="clean"), "train").equals(inter(folder, "train"))


def strangers(known: int) -> Callable[[Split], None]:
    """Users unseen in training in all but so many of the 80 validation rows."""

    def edit(parts: Split) -> None:
        users = parts["valid"].users.tolist()
        new = [user if n < known else f"new {user}" for n, user in enumerate(users)]
        parts["valid"] = replace(parts["valid"], users=np.array(new))

    return edit


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_of_all_validation_rows(here: Path, kind: str) -> None:
    """Rows of users who are not in the training file count, too."""
    write_built(here / "data", ("clean",), strangers(16))
    folder = corrupt(here / "data", "noisy", "--also-valid", "--kind", kind, protocol="clean")
    valid = inter(folder, "valid")
    added = valid[valid["injected"] == "1"]
    assert (len(valid), len(added)) == (100, 20)
    assert set(added["user_id"]) <= set(inter(folder, "train")["user_id"])
    manifest = data_recipes.load_manifest(folder)
    assert manifest["derived"]["realised_rate_valid"] == 0.2
    assert "100 of the 500 training rows and 20 of the 100 validation rows were injected" in manifest["notes"][-1]


def test_validation_rows_of_strangers_alone(here: Path) -> None:
    write_built(here / "data", ("clean",), strangers(0))
    folder = corrupt(here / "data", "noisy", "--also-valid", protocol="clean")
    assert (inter(folder, "valid")["injected"] == "1").sum() == 20
    for kind in ("popular", "per-user"):
        words = ("--rate", "0.2", "--kind", kind, "--also-valid", "--out", "more")
        said = f"In the validation file: Noise of the kind '{kind}' follows the observed pairs, and none of the 80 rows"
        assert said in mistake("corrupt", "data", *words)


def test_validation_files_with_too_few_rows(here: Path) -> None:
    def none(parts: Split) -> None:
        parts["valid"] = parts["valid"].take(np.array([], dtype=np.int64))

    write_built(here / "data", ("clean",), none)
    words = ("--rate", "0.2", "--also-valid", "--out", "noisy")
    assert "In the validation file: There is no row to put noise among." in mistake("corrupt", "data", *words)
    assert not (here / "noisy").exists()


def test_both_protocols_may_share_a_folder(built: Path, here: Path) -> None:
    for protocol in ("paper", "clean"):
        corrupt(built, "noisy", protocol=protocol)
    assert sorted(path.name for path in (here / "noisy").iterdir()) == ["clean", "paper"]


def test_ids_are_those_without_the_noise(built: Path, here: Path) -> None:
    """The same seed then gives both runs the same initial weights."""
    corrupt(built, "noisy")
    before, after = (load_split("GMF", str(f), "paper", {}) for f in (built, here / "noisy"))
    np.testing.assert_array_equal(before.user_tokens, after.user_tokens)
    np.testing.assert_array_equal(before.item_tokens, after.item_tokens)
    assert len(after.train[0]) == 500
    assert after.dataset.inter_feat["injected"].sum() == 100


@pytest.mark.parametrize("model", ["GMF", "LightGCN", "CDAE"])
def test_train_and_find_noise_work_on_it(built: Path, here: Path, model: str) -> None:
    corrupt(built, "noisy", "--kind", "per-user")
    train(here / "noisy", "--denoiser", "normal", "--out", "n", model=model)
    printed = output("find-noise", "n")
    assert "injected is 1, 100 of 500 rows (20.0%)" in printed
    table = pd.read_csv("n/suspects.csv")
    assert sorted(table.loc[table["noise"] == 1, "row"]) == list(range(400, 500))
    output("inspect", "n", "--out", "p.csv", "--plot", "p.png")
    assert (pd.read_csv("p.csv")["rating"] == 0).sum() == 100


def test_injected_rows_are_noise_under_any_rule(built: Path, here: Path) -> None:
    corrupt(built, "noisy")
    train(here / "noisy", "--out", "n")
    assert "not rating >= 0, 100 of 500 rows" in output("find-noise", "n", "--clean", "rating >= 0")


def test_plain_recbole_reads_it(built: Path, here: Path) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    folder = corrupt(built, "noisy")
    config = Config(
        model="BPR",
        dataset="tiny",
        config_file_list=[str(folder / "tiny.yaml")],
        config_dict={"data_path": str(folder.parent), "use_gpu": False},
    )
    parts = data_preparation(config, create_dataset(config))
    assert parts[0]._dataset.inter_feat["injected"].sum() == 100


def renew_hashes(folder: Path) -> None:
    """A manifest that fits the files, new ones included."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_time_and_labels_are_those_of_a_row_of_the_user(built: Path, here: Path) -> None:
    shutil.copytree(built, "timed")
    folder = here / "timed" / "paper" / "tiny"
    for split in own_data.SPLITS:
        file = folder / f"tiny.{split}.inter"
        part = own_data.read_inter(file)
        day = part.rows["user_id"].str[1:].astype(int) * 1000 + np.arange(len(part.rows)) % 7
        wide = part.with_column("time", day.astype(str).to_numpy())
        shops = wide.rows.assign(shop="shop of " + wide.rows["user_id"])
        file.write_bytes(own_data.InterFile({**wide.types, "shop": "token"}, shops).to_bytes())
    config = folder / "tiny.yaml"
    config.write_text(config.read_text().replace("rating]", "rating, time]") + "TIME_FIELD: time\n")
    renew_hashes(folder)
    added = inter(corrupt(here / "timed", "noisy"), "train").iloc[400:]
    assert (added["time"].astype(int) // 1000 == added["user_id"].str[1:].astype(int)).all()
    assert added["time"].nunique() > 40
    assert (added["shop"] == "shop of " + added["user_id"]).all()


def test_a_set_without_ratings_and_with_files_of_ids(built: Path, here: Path) -> None:
    shutil.copytree(built, "bare")
    folder = here / "bare" / "paper" / "tiny"
    for split in own_data.SPLITS:
        file = folder / f"tiny.{split}.inter"
        part = own_data.read_inter(file)
        file.write_bytes(
            own_data.InterFile({k: v for k, v in part.types.items() if k != "rating"}, part.rows).to_bytes()
        )
    for kind in ("user", "item"):
        ids = "".join(f"{kind[0]}{i}\n" for i in range(1, 50))
        (folder / f"tiny.{kind}").write_text(f"{kind}_id:token\n{ids}")
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    del config["RATING_FIELD"]
    config["load_col"] = {"inter": ["user_id", "item_id"], "user": ["user_id"], "item": ["item_id"]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    renew_hashes(folder)
    printed = output("corrupt", "bare", "--rate", "0.2", "--protocol", "paper", "--out", "noisy")
    assert "marked by 1 in the column injected.\n" in printed
    train(here / "noisy", "--protocol", "paper", "--out", "n")
    assert "injected is 1, 100 of 500 rows" in output("find-noise", "n")
    assert len(load_split("GMF", "noisy", "paper", {}).user_tokens) == 50  # the padding and 49


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "0"), "The noise rate is 0; it must lie between 0 and 1, both excluded."),
        (("--rate", "1"), "The noise rate is 1; it must lie"),
        (("--rate", "-0.2"), "The noise rate is -0.2;"),
        (("--rate", "20%"), "'20%' is not a valid float"),
        (("--rate", "0.2", "--kind", "rand"), "Unknown kind of noise 'rand'. Did you mean 'random'?"),
        (("--rate", "0.2", "--protocol", "dirty"), "Unknown protocol 'dirty'"),
        (("--rate", "0.99"), "The catalogue is too small: a noise rate of 0.99 needs 39,600 unobserved pairs"),
        (("--rate", "0.001"), "A noise rate of 0.001 is less than one row of 400"),
        ((), "Missing option '--rate'"),
    ],
)
def test_mistakes_write_nothing(built: Path, here: Path, words: tuple[str, ...], said: str) -> None:
    assert said in mistake("corrupt", built, *words, "--out", "noisy")
    assert not (here / "noisy").exists()


def test_a_folder_that_is_taken_stays(built: Path, here: Path) -> None:
    folder = corrupt(built, "noisy", "--seed", "1")
    before = (folder / "tiny.train.inter").read_bytes()
    taken = "noisy/paper/tiny is taken by something else; choose another --out"
    assert taken in mistake("corrupt", built, "--rate", "0.2", "--seed", "2", "--out", "noisy")
    assert (folder / "tiny.train.inter").read_bytes() == before
    shutil.copytree(built, "data")
    assert "is taken" in mistake("corrupt", built, "--rate", "0.2", "--out", "data")
    (here / "file").write_text("")
    assert "file" in mistake("corrupt", built, "--rate", "0.2", "--out", "file")


def test_sets_that_cannot_be_corrupted(built: Path, here: Path) -> None:
    assert "neither a recipe" in mistake("corrupt", "nowhere", "--rate", "0.2", "--out", "noisy")
    corrupt(built, "noisy")
    assert "was corrupted before" in mistake("corrupt", "noisy", "--rate", "0.2", "--out", "more")
    path = here / "noisy" / "paper" / "tiny" / "tiny.train.inter"
    path.write_bytes(path.read_bytes() + b"u1\ti1\t5\t0\n")
    assert "has changed since it was built" in mistake("corrupt", "noisy", "--rate", "0.2", "--out", "more")


def test_the_only_protocol_is_taken_by_itself(built: Path, here: Path) -> None:
    shutil.copytree(built / "clean", here / "data" / "clean")
    printed = output("corrupt", "data", "--rate", "0.2", "--out", "noisy")
    assert "train on it by --dataset noisy\n" in printed
    corrupt(built, "noisy")
    assert "by --dataset noisy --protocol clean\n" in output("corrupt", "data", "--rate", "0.2", "--out", "noisy")
