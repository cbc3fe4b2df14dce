"""The command line: what it writes, what it prints, and that its parts agree with each other."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import recdenoise
from recdenoise import denoisers
from recdenoise.cli import main, read_cutoffs
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.experiment import load
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.models import MODELS
from recdenoise.recbole_adapter.settings import read_settings
from recdenoise.reports import inspection
from tests.built_folder import splits
from tests.command import environment, mistake, output, run

FAST = ("--set", "epochs=2", "--set", "train_batch_size=64", "--set", "embedding_size=8", "--quiet")


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(denoisers._TABLE)
    yield
    denoisers._TABLE.clear()
    denoisers._TABLE.update(before)


def train(built: Path, *words: str, model: str = "GMF") -> str:
    return output("train", "--model", model, "--dataset", str(built), *FAST, *words)


def figures(printed: str) -> dict[str, list[float]]:
    """The rows of a printed table of metrics."""
    rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in printed.splitlines() if line[:1] in "│┃"
    ]
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows[1:] if len(row) > 1}


# Help


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.parametrize("path", [path for path, _ in commands(main)], ids=" ".join)  # type: ignore[arg-type]
def test_help_explains_every_option(path: tuple[str, ...]) -> None:
    command = dict(commands(main))[path]  # type: ignore[arg-type]
    for word in ("--help", "-h"):
        printed = output(*path, word)
        assert printed.startswith(f"Usage: recdenoise {' '.join(path)}")
    assert command.help
    assert command.get_short_help_str().endswith((".", "..."))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} has no help"
            assert parameter.opts[0] in printed


def test_help_shows_a_line_that_works_as_it_stands() -> None:
    printed = output("--help")
    assert "recdenoise train --model GMF --dataset ml-100k --denoiser deca_p --preset paper --compare normal" in printed
    assert all(
        f"  {name} " in printed for name in ("train", "evaluate", "recommend", "inspect", "methods", "models", "data")
    )


def test_version() -> None:
    assert output("--version") == f"recdenoise, version {recdenoise.__version__}\n"


# Lists


def test_methods_one_line_each_with_the_paper() -> None:
    printed = output("methods")
    for name in denoisers.names():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"│ {name} ")]
        assert denoisers.get(name).title in line
    assert "TORS 2023" in printed


def test_models_one_line_each_with_the_paper() -> None:
    printed = output("models")
    for name, entry in MODELS.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"│ {name} ")]
        assert entry.summary.split()[0] in line
    assert "│ BPR " in printed
    assert "│ Pop " not in printed


def test_data_sets(cache: Path, tmp_path: Path) -> None:
    assert "ml-100k" in output("data", "list")
    printed = output("data", "build", "ml-100k", "--out", tmp_path / "d")
    assert re.search(r"train\s+│\s+943\s+│\s+1,611\s+│\s+79,619", printed)
    for protocol in ("paper", "clean"):
        folder = tmp_path / "d" / protocol / "ml-100k"
        assert f"wrote {folder}" in printed
        assert f"protocol {protocol}, all files as built" in output("data", "verify", folder)
    test = tmp_path / "d" / "clean" / "ml-100k" / "ml-100k.test.inter"
    test.write_bytes(test.read_bytes()[:-2])
    assert "ml-100k.test.inter has changed since it was built" in mistake("data", "verify", test.parent)
    assert "Unknown recipe 'ml100k'. Did you mean 'ml-100k'" in mistake("data", "build", "ml100k", "--out", tmp_path)


# Training


def test_train_writes_a_whole_run(built: Path, here: Path) -> None:
    printed = train(built, "--denoiser", "deca_p", "--seed", "7", "--out", "runs/x")
    out = here / "runs" / "x"
    assert {path.name for path in out.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "checkpoint.pt",
        "model.pt",
        "result.json",
    }
    result = json.loads((out / "result.json").read_text())
    facts = {name: result[name] for name in ("model", "dataset", "denoiser", "protocol", "seed")}
    assert facts == {"model": "GMF", "dataset": "tiny", "denoiser": "deca_p", "protocol": "paper", "seed": 7}
    assert set(result["test"]) == {f"{metric}@{k}" for metric in ("recall", "ndcg") for k in (3, 5, 10, 20)}
    assert all(0 < value <= 1 for value in result["test"].values())
    assert result["versions"].keys() >= {"recdenoise", "python", "torch", "numpy", "scipy", "recbole"}
    assert result["versions"]["recdenoise"] == recdenoise.__version__
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["seconds"].keys() == {"prepare", "train", "evaluate"}
    assert all(value > 0 for value in result["seconds"].values())
    assert result["epochs"] == {"prior": 2, "train": 2}

    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("prior", "1"),
        ("prior", "2"),
        ("train", "1"),
        ("train", "2"),
    ]
    assert all(float(row["loss"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    assert all(float(row["valid_loss"]) > 0 for row in rows[:2])
    assert all(0 <= float(row["valid_ndcg@20"]) <= 1 for row in rows[2:])

    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["epochs"], config["seed"], config["denoiser"]["name"]) == (2, 7, "deca_p")
    settings = read_settings(out)
    assert settings.to_dict() == config
    assert (settings.dataset, settings.batch_size, settings.options["embedding_size"]) == (str(built.resolve()), 64, 8)

    assert "GMF on" in printed
    assert "protocol paper, seed 7, clean test" in printed
    assert figures(printed)["DeCA(p)"] == pytest.approx(list(result["test"].values()), abs=5e-5)
    assert "DeCA(p): runs/x  (prepare" in printed


def test_the_config_of_a_run_gives_the_same_run(built: Path, here: Path) -> None:
    train(built, "--denoiser", "r_ce", "--seed", "7", "--out", "a", "--set", "denoiser.alpha=0.5")
    output("train", "--model", "GMF", "--dataset", built, "--config", "a/config.yaml", "--out", "b", "--quiet")
    first, second = (torch.load(here / name / "model.pt", weights_only=True) for name in "ab")
    assert first["identity"] == second["identity"]
    assert all(torch.equal(first["modules"][key], second["modules"][key]) for key in first["modules"])


def test_config_files_and_set(built: Path, here: Path) -> None:
    (here / "my.yaml").write_text("denoiser: {name: t_ce, drop_rate: 0.1}\nepochs: 5\nlearning_rate: 0.02\n")
    train(built, "--config", "my.yaml", "--set", "denoiser.exponent=2", "--out", "a")
    settings = read_settings(here / "a")
    assert settings.method.name == "t_ce"
    assert (settings.config.to_dict()["drop_rate"], settings.config.to_dict()["exponent"]) == (0.1, 2.0)
    assert (settings.loop.epochs, settings.loop.lr) == (2, 0.02)


def test_compare_trains_both_and_prints_the_plain_one_first(built: Path, here: Path) -> None:
    printed = train(built, "--denoiser", "deca", "--compare", "normal", "--set", "denoiser.alpha=1")
    names = [f"data-paper-GMF-{method}-2020" for method in ("deca", "normal")]
    assert sorted(path.name for path in (here / "runs").iterdir()) == sorted(names)
    table = figures(printed)
    assert list(table) == ["Normal", "DeCA"]
    for title, name in zip(("DeCA", "Normal"), names, strict=True):
        result = json.loads((here / "runs" / name / "result.json").read_text())
        assert table[title] == pytest.approx(list(result["test"].values()), abs=5e-5)
    assert read_settings(here / "runs" / names[0]).config.to_dict()["alpha"] == 1


def test_compare_with_a_folder_of_ones_own(built: Path, here: Path) -> None:
    train(built, "--denoiser", "deca", "--compare", "normal", "--compare", "r_ce", "--out", "runs/x")
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["x", "x-normal", "x-r_ce"]


def test_the_clean_protocol(built: Path, here: Path) -> None:
    train(built, "--protocol", "clean", "--out", "a")
    result = json.loads((here / "a" / "result.json").read_text())
    assert result["protocol"] == "clean"
    assert result["counts"]["n_masked_truth"] == 0
    run_ = load(here / "a")
    assert sorted(run_.data.truth.keys.tolist()) == sorted(run_.data.truth.minus(run_.data.known).keys.tolist())


def test_progress_bars_show_losses(built: Path, here: Path) -> None:
    printed = output("train", "--model", "GMF", "--dataset", built, *FAST[:-1], "--denoiser", "deca_p", "--out", "a")
    assert "GMF + DeCA(p): prior" in printed
    assert re.search(r"epoch 2  loss \d+\.\d{4}  valid ndcg@20 0\.\d{4}", printed)
    assert "loss" not in train(built, "--denoiser", "deca_p", "--out", "b")


def test_published_preset_on_ml_100k(cache: Path, here: Path) -> None:
    """The README's line, cut short: what it resolves to and where it says the run is."""
    printed = output(
        *("train", "--model", "GMF", "--dataset", "ml-100k", "--denoiser", "deca_p", "--preset", "paper"),
        *("--compare", "normal", "--set", "epochs=1", "--quiet"),
    )
    assert list(figures(printed)) == ["Normal", "DeCA(p)"]
    for method in ("deca_p", "normal"):
        folder = here / "runs" / f"ml-100k-paper-GMF-{method}-2020"
        assert str(folder.relative_to(here)) in printed
        assert json.loads((folder / "result.json").read_text())["preset"] == "paper"


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


# A process of its own

MEASURED = """
import json, resource, sys
from recdenoise.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def test_memory_of_a_run_stays_below_one_and_a_half_gigabytes(cache: Path, here: Path) -> None:
    words = ["train", "--model", "GMF", "--dataset", "ml-100k", "--denoiser", "deca_p", "--preset", "paper"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words, "--set", "epochs=2", "--quiet", "--out", "a"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kilobytes = json.loads(done.stdout.splitlines()[-1])
    assert kilobytes / 2**20 < 1.5
    assert "Traceback" not in done.stderr


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recdenoise.cli", "train", "--modle", "GMF"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert re.search("No such option.*--modle.*Did you mean.*--model", done.stderr)


def test_run_is_what_the_tests_think_it_is() -> None:
    assert run("methods").exit_code == 0
    assert run("nonsense").exit_code == 2
