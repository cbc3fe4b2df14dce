"""What the command line says of a run: evaluation, recommendations, inspection; and denoisers of one's own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recdenoise import denoisers
from recdenoise.cli import read_cutoffs
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.experiment import load
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.settings import read_settings
from recdenoise.reports import inspection
from tests.built_folder import splits
from tests.command import figures, mistake, output, train


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(denoisers._TABLE)
    yield
    denoisers._TABLE.clear()
    denoisers._TABLE.update(before)


# Evaluation


def test_evaluate_repeats_the_result_of_the_run(trained: Path, here: Path) -> None:
    printed = output("evaluate", trained, "--json", "e.json")
    expected = json.loads((trained / "result.json").read_text())["test"]
    assert figures(printed)["all"] == pytest.approx(list(expected.values()), abs=5e-5)
    assert json.loads((here / "e.json").read_text())["mean"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "words",
    [
        ("RUN", "--topk", "3", "20"),
        ("--topk", "3", "20", "RUN"),
        ("--topk", "3", "--topk", "20", "RUN"),
        ("RUN", "--topk", "3,20"),
        ("--topk", "3 20", "RUN"),
    ],
)
def test_cut_offs_in_every_form(trained: Path, words: tuple[str, ...]) -> None:
    printed = output("evaluate", *(str(trained) if word == "RUN" else word for word in words))
    assert re.findall("[RN]@[0-9]+", printed) == ["R@3", "R@20", "N@3", "N@20"]


def test_read_cutoffs(here: Path) -> None:
    (here / "20").mkdir()
    assert read_cutoffs(("3",), ("20",), Path("x")) == ([3, 20], Path("x"))
    assert read_cutoffs(("3",), ("x",), Path("10")) == ([3, 10], Path("x"))
    assert read_cutoffs(("3",), (), Path("20")) == ([3], Path("20"))  # a run whose name is a number
    assert read_cutoffs(("3", "5", "3"), (), None) == ([3, 5], None)
    for bad in (("0",), ("-1",), ("x",), ("1.5",), ("²",)):
        with pytest.raises(UserError, match="topk takes whole numbers from 1"):
            read_cutoffs(bad, (), None)
    with pytest.raises(UserError, match="one run, not x and y"):
        read_cutoffs(("3",), ("y",), Path("x"))


def test_all_metrics(trained: Path, here: Path) -> None:
    output(
        "evaluate", trained, "--topk", "5", "--metrics", "recall,NDCG, precision,mrr,hit,recall@7", "--json", "e.json"
    )
    mean = json.loads((here / "e.json").read_text())["mean"]
    assert set(mean) == {"recall@5", "recall@7", "ndcg@5", "precision@5", "mrr@5", "hit@5"}
    assert mean["hit@5"] >= mean["mrr@5"]


def test_unmasked_and_the_other_protocol(trained: Path, here: Path) -> None:
    for name, words in {"own": (), "unmasked": ("--unmasked",), "clean": ("--protocol", "clean")}.items():
        output("evaluate", trained, *words, "--json", f"{name}.json")
    own, unmasked, clean = (json.loads((here / f"{name}.json").read_text()) for name in ("own", "unmasked", "clean"))
    assert own["n_masked_truth"] == clean["n_masked_truth"] > 0
    assert unmasked["n_masked_truth"] == 0
    assert unmasked["mean"] != own["mean"]
    # Positives that the mask hides stay in the published denominators and leave the clean ones.
    assert clean["mean"]["recall@20"] > own["mean"]["recall@20"]
    parts = splits("paper")
    known = {*zip(parts["train"].users, parts["train"].items, strict=True)} | {
        *zip(parts["valid"].users, parts["valid"].items, strict=True)
    }
    truth = [*zip(parts["clean_test"].users, parts["clean_test"].items, strict=True)]
    assert own["n_masked_truth"] == sum(pair in known for pair in truth)
    assert own["n_users"] == len({user for user, _ in truth})
    assert clean["n_users"] == len({pair[0] for pair in truth if pair not in known})


def test_strangers_are_counted_and_reported(tmp_path: Path, here: Path) -> None:
    from tests.built_folder import Split, interactions, write_built

    def edit(parts: Split) -> None:
        old = parts["clean_test"]
        rows = list(zip(old.users.tolist(), old.items.tolist(), old.ratings.tolist(), strict=True))
        parts["clean_test"] = interactions([*rows, ("ghost", "i1", 5), ("late", "i2", 5), ("u1", "fresh", 5)])
        seen = parts["test"]  # "late" and "fresh" have no training row, but RecBole knows them from the test file
        rows = list(zip(seen.users.tolist(), seen.items.tolist(), seen.ratings.tolist(), strict=True))
        parts["test"] = interactions([*rows, ("late", "i2", 5), ("u1", "fresh", 5)])

    folder = write_built(tmp_path / "d", ("paper",), edit)
    train(folder, "--denoiser", "deca", "--out", "a")
    counts = json.loads((here / "a" / "result.json").read_text())["counts"]
    assert (counts["n_unseen_users"], counts["n_unseen_items"], counts["unknown_test_rows"]) == (1, 1, 1)
    printed = output("evaluate", "a")
    assert "unseen_users: 1" in printed
    assert "unseen_items: 1" in printed
    assert "unknown_test_rows: 1" in printed
    assert set(figures(printed)) == {"all", "warm", "cold"}
    # The clean protocol reports strangers too, and leaves them out of the mean.
    clean = output("evaluate", "a", "--protocol", "clean")
    assert "unseen_users: 1" in clean
    assert figures(clean)["all"] == figures(clean)["warm"] != figures(clean)["cold"]
    assert figures(printed)["all"] != figures(printed)["warm"]
    assert "late" in output("recommend", "a", "--users", "late", "--k", "2")


def test_lists_of_any_system_count_alike(trained: Path, here: Path) -> None:
    """The lists that `recommend` gives, written to a file, measure as the run itself does."""
    loaded = load(trained)
    users = sorted({str(user) for user in splits("paper")["clean_test"].users})
    with (here / "lists.csv").open("w") as file:
        file.write("user,item,rank\n")
        for user, items in loaded.recommend(users, 10):
            file.writelines(f"{user},{item},{rank}\n" for rank, (item, _) in enumerate(items, 1))
    truth = trained.parent / "truth.tsv"
    parts = splits("paper")["clean_test"]
    truth.write_text("".join(f"{u}\t{i}\n" for u, i in zip(parts.users, parts.items, strict=True)))
    words = ("--recommendations", "lists.csv", "--truth", truth, "--topk", "3", "10", "--json", "f.json")
    printed = output("evaluate", *words)
    assert "lists.csv against" in printed
    output("evaluate", trained, "--topk", "3", "10", "--json", "r.json")
    files, own = (json.loads((here / name).read_text())["mean"] for name in ("f.json", "r.json"))
    assert files == pytest.approx(own)


# Recommendations


def test_recommend_by_token(trained: Path) -> None:
    printed = output("recommend", trained, "--users", "u7", "u3", "--k", "4")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert [(row[0], row[1]) for row in rows] == [(user, str(rank)) for user in ("u7", "u3") for rank in (1, 2, 3, 4)]
    loaded = load(trained)
    parts = splits("paper")
    for user, mine in (("u7", rows[:4]), ("u3", rows[4:])):
        with torch.no_grad():
            scores = torch.sigmoid(loaded.denoiser.score(WholeRows(loaded.data.user_ids([user]))))[0]
        taken = {
            i
            for part in ("train", "valid")
            for u, i in zip(parts[part].users, parts[part].items, strict=True)
            if u == user
        }
        order = sorted(
            ((scores[i].item(), str(loaded.data.item_tokens[i])) for i in range(1, len(scores))), key=lambda p: -p[0]
        )
        expected = [(item, f"{score:.3f}") for score, item in order if item not in taken][:4]
        assert [(row[2], row[3]) for row in mine] == expected


@pytest.mark.parametrize("words", [("--users", "u7", "u3", "RUN"), ("RUN", "--users", "u7", "--users", "u3")])
def test_recommend_in_every_form(trained: Path, words: tuple[str, ...]) -> None:
    given = [str(trained) if word == "RUN" else word for word in words]
    assert output("recommend", *given, "--k", "4") == output("recommend", trained, "--users", "u7", "u3", "--k", "4")


# Inspection


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_inspect_writes_what_the_denoiser_says(trained: Path, here: Path, ending: str) -> None:
    path = here / f"p.{ending}"
    printed = output("inspect", trained, "--out", path, "--plot", "bars.png")
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    loaded, train_part = load(trained), splits("paper")["train"]
    assert list(table.columns) == ["user", "item", "rating", "p_clean"]
    assert table["user"].tolist() == train_part.users.tolist()
    assert table["item"].tolist() == train_part.items.tolist()
    assert table["rating"].tolist() == train_part.ratings.tolist()
    np.testing.assert_allclose(table["p_clean"], loaded.denoiser.clean_probability(), rtol=1e-6)
    assert (here / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert (here / "bars.png").stat().st_size > 5000
    assert f"{len(table)} interactions: {path}" in printed
    for rating in (2, 5):
        mean = table.loc[table["rating"] == rating, "p_clean"].mean()
        assert re.search(rf"│ {rating}\s+│ {mean:.4f}\s+│ {(table['rating'] == rating).sum()}\s", printed)


def test_many_ratings_are_told_in_groups(here: Path) -> None:
    """A third of the rows share a rating and stay together; so do the twenty levels that fit one by one."""
    from matplotlib import image

    rng = np.random.default_rng(0)
    dwell = np.concatenate([np.zeros(1000), rng.integers(1, 2001, 2000) / 4, [np.nan] * 7]).astype(np.float32)
    table = pd.DataFrame({"rating": dwell, "p_clean": rng.random(len(dwell))})
    means = inspection.mean_per_rating(table)
    assert 7 <= len(means) <= inspection.GROUPS
    assert (means["count"].sum(), means["rating"][0], means["count"][0]) == (3000, "0", 1000)
    assert means["count"][1:].between(200, 400).all()
    lowest, highest = (np.array([float(label.split(" to ")[end]) for label in means["rating"][1:]]) for end in (0, 1))
    assert (highest[:-1] < lowest[1:]).all()
    for low, high, mean in zip(lowest, highest, means["mean"][1:], strict=True):
        assert mean == pytest.approx(table.loc[table["rating"].between(low, high), "p_clean"].mean())
    inspection.plot_per_rating(table, "a $x_^$ b", here / "bars.png")  # a title is no formula
    assert image.imread(here / "bars.png").shape[1] < 2000
    few = inspection.mean_per_rating(table.assign(rating=np.arange(len(table)) % 20 / 2))
    assert few["rating"].tolist() == [f"{level / 2:g}" for level in range(20)]
    assert inspection.mean_per_rating(table.assign(rating=np.nan)).empty


def test_inspect_writes_into_the_run_by_default(built: Path, here: Path) -> None:
    train(built, "--denoiser", "deca", "--out", "a")
    output("inspect", "a")
    assert {"p_clean.parquet", "p_clean_by_rating.png"} <= {path.name for path in (here / "a").iterdir()}


def test_inspect_says_so_where_a_method_knows_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(trained)
    monkeypatch.setattr(type(loaded.denoiser), "clean_probability", lambda self: None)
    with pytest.raises(UserError, match="does not tell which labels are right"):
        inspection.probability_table(loaded)


# Denoisers of one's own

PLUGIN = '''
from dataclasses import dataclass

from recdenoise import Denoiser, DenoiserConfig, Losses, register


@dataclass(frozen=True)
class Options(DenoiserConfig):
    strength: float = 0.5


@register
class Halved(Denoiser):
    """Half of every loss."""

    name = "halved"
    title = "Halved"
    summary = "half of every loss"
    paper = "mine"
    Config = Options

    def losses(self, batch, clock):
        plain = self.plain_losses(self.target, batch)
        return Losses(plain.loss * self.config.strength)
'''


@pytest.mark.usefixtures("registered")
def test_a_plugin_is_a_method_like_any_other(built: Path, here: Path) -> None:
    (here / "mine.py").write_text(PLUGIN)
    assert "│ halved " in output("methods", "--plugin", "mine.py")
    words = ("--plugin", "mine.py", "--denoiser", "halved", "--set", "denoiser.strength=0.25")
    train(built, *words, "--out", "a")
    assert read_settings(here / "a").config.to_dict()["strength"] == 0.25
    assert "strength" in mistake("train", "--model", "GMF", "--dataset", built, *words, "--set", "denoiser.strenth=1")
    del denoisers._TABLE["halved"]
    message = mistake("evaluate", "a")
    assert "Unknown denoiser 'halved'" in message
    assert "--plugin" in message
    output("evaluate", "a", "--plugin", "mine.py")
    output("recommend", "a", "--users", "u1", "--plugin", "mine.py")
    output("inspect", "a", "--plugin", "mine.py")
    output("train", "--resume", "a", "--plugin", "mine.py")


@pytest.mark.usefixtures("registered")
def test_a_plugin_may_be_a_module_and_shadows_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "mine_as_module.py").write_text(PLUGIN)
    assert "│ halved " in output("methods", "--plugin", "mine_as_module")
    (here / "json.py").write_text(PLUGIN.replace('"halved"', '"thirded"'))
    assert "│ thirded " in output("methods", "--plugin", "json.py")
    assert sys.modules["json"] is json
