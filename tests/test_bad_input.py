"""What bad input gets: exit code 2 and one line that names the thing and what would work, before any data is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recdenoise import denoisers
from recdenoise.recbole_adapter import experiment
from tests.command import mistake, output, run

BASE = ("--model", "GMF", "--dataset", "ml-100k")
FAST = ("--set", "epochs=1", "--set", "train_batch_size=64", "--quiet")


# Words that cannot work


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs --model and --dataset"),
        (("--model", "GMF"), "needs --dataset"),
        (("--model", "GFM", "--dataset", "ml-100k"), "Unknown model 'GFM'. Did you mean 'GMF'? Valid: "),
        (("--model", "GMF", "--dataset", "ml100k"), "no data set 'ml100k': it is neither a recipe (ml-100k"),
        (("--model", "GMF", "--dataset", "tests"), "no data set 'tests'"),
        (
            (*BASE, "--denoiser", "decap"),
            "Unknown denoiser 'decap'. Did you mean 'deca_p'? Valid: deca, deca_p, ensemble",
        ),
        ((*BASE, "--compare", "nomal"), "Unknown denoiser 'nomal'. Did you mean 'normal'?"),
        ((*BASE, "--compare", "normal"), "--compare names normal twice"),
        ((*BASE, "--protocol", "published"), "Unknown protocol 'published'. Valid: paper, clean."),
        ((*BASE, "--preset", "papr"), "Unknown preset 'papr'. Did you mean 'paper'?"),
        (("--model", "BPR", "--dataset", "ml-100k", "--preset", "paper"), "no settings for BPR on ml-100k. It has: "),
        ((*BASE, "--seed", "x"), "'x' is not a valid integer"),
        ((*BASE, "--sed", "1"), "No such option"),
        ((*BASE, "extra"), "unexpected extra argument (extra)"),
        ((*BASE, "--set", "epochs"), "'epochs' must read KEY=VALUE"),
        ((*BASE, "--set", "epochs=-3"), "'epochs' is -3; it must be 1 or more"),
        ((*BASE, "--set", "epochs=five"), "'epochs' is 'five'; it must be a whole number"),
        ((*BASE, "--set", "train_batch_size=0"), "'train_batch_size' is 0; it must be 1 or more"),
        ((*BASE, "--set", "lr=0.1"), "unknown option 'lr'. Valid for GMF: checkpoint_seconds"),
        ((*BASE, "--set", "learner=sgd"), "learner is 'sgd'; denoisers declare their optimisers"),
        ((*BASE, "--set", "valid_selector=recall"), "'recall' needs a cut-off, as in recall@20"),
        (
            (*BASE, "--set", "valid_selector=auc@20"),
            "Unknown metric 'auc@20'. Valid: hit, mrr, ndcg, precision, recall.",
        ),
        (
            (*BASE, "--set", "valid_selector=best"),
            "'best' is none of last, loss, trimmed, nor a metric such as ndcg@20",
        ),
        ((*BASE, "--denoiser", "deca", "--set", "denoiser.alpha=1.5"), "'alpha' is 1.5; it must be from 0 to 1"),
        (
            (*BASE, "--denoiser", "deca", "--set", "denoiser.c1=5"),
            "Did you mean 'c_1'? Valid: alpha, auxiliary, c_1, c_2",
        ),
        ((*BASE, "--denoiser", "deca", "--set", "denoiser.h_model=cdae"), "one of mf, gmf, neumf"),
        (
            (*BASE, "--denoiser", "deca", "--set", "denoiser.c_1=lots"),
            "'c_1' of denoiser deca is 'lots'; it must be a number",
        ),
        ((*BASE, "--denoiser", "deca_p", "--set", "denoiser.prior_selector=ndcg"), "'ndcg' needs a cut-off"),
        ((*BASE, "--denoiser", "deca", "--set", "denoiser.auxiliary=Pop"), "Pop cannot be trained by a denoiser"),
        (("--model", "Pop", "--dataset", "ml-100k", "--denoiser", "deca"), "Pop cannot be trained by a denoiser"),
        (("--model", "ItemKNN", "--dataset", "ml-100k"), "ItemKNN cannot be trained by a denoiser"),
        (("--model", "SASRec", "--dataset", "ml-100k"), "No scorer is known for SASRec"),
        ((*BASE, "--config", "none.yaml"), "Configuration file none.yaml does not exist"),
        ((*BASE, "--plugin", "none.py"), "Plugin none.py: there is no such file"),
        ((*BASE, "--plugin", "no.such.module"), "Plugin no.such.module cannot be imported: No module named 'no'"),
        (("--resume", "nowhere"), "nowhere is not a run: it has no config.yaml"),
        (
            ("--resume", "nowhere", "--model", "GMF"),
            "--resume nowhere takes its settings from the run; leave out --model",
        ),
        (("--resume", "x", "--set", "a=1", "--config", "b", "--compare", "c"), "leave out --set, --config, --compare"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_train(here: Path, words: tuple[str, ...], said: str) -> None:
    assert said in mistake("train", *words)
    assert list(here.iterdir()) == []  # nothing was begun


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give the folder of a run, or --recommendations and --truth"),
        (("nowhere",), "nowhere is not a run"),
        (
            ("RUN", "--metrics", "recal"),
            "Unknown metric 'recal'. Did you mean 'recall'? Valid: hit, mrr, ndcg, precision",
        ),
        (("RUN", "--metrics", ","), "No metric was asked for"),
        (("RUN", "--topk", "0"), "A cut-off is '0'; --topk takes whole numbers from 1"),
        (("RUN", "--topk", "many"), "A cut-off is 'many'"),
        (("RUN", "--topk", "3", "other"), "evaluate takes one run, not "),
        (("RUN", "--protocol", "noisy"), "Unknown protocol 'noisy'. Valid: paper, clean"),
        (("RUN", "--recommendations", "a.csv"), "Give either a run, or both --recommendations and --truth"),
        (("--truth", "a.csv"), "Give either a run, or both --recommendations and --truth"),
        (("--truth", "a", "--recommendations", "b", "--unmasked"), "--protocol and --unmasked are for runs"),
        (("--truth", "a.csv", "--recommendations", "b.csv"), "There is no file b.csv"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_evaluate(here: Path, trained: Path, words: tuple[str, ...], said: str) -> None:
    assert said in mistake("evaluate", *(str(trained) if word == "RUN" else word for word in words))


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("recommend", "RUN"), "Missing option '--users'"),
        (("recommend", "nowhere", "--users", "u1"), "nowhere is not a run"),
        (("recommend", "RUN", "--users", "u1", "--k", "0"), "Invalid value for '--k'"),
        (("inspect",), "Missing argument 'RUN'"),
        (("inspect", "nowhere"), "nowhere is not a run"),
        (("inspect", "RUN", "--out", "p.xlsx"), "--out p.xlsx must end in .parquet or .csv"),
        (("inspect", "RUN", "--plot", "p.svg"), "--plot p.svg must end in .png"),
        (("data", "build", "ml-1m", "--out", "x"), "Unknown recipe 'ml-1m'. Did you mean 'ml-100k'? Valid: "),
        (("data", "build", "ml-100k"), "Missing option '--out'"),
        (("data", "build", "ml-100k", "--out", "x", "--from", "none"), "none"),
        (("data", "verify", "nowhere"), "There is no folder nowhere"),
        (("data", "bild"), "Unknown command 'bild'. Did you mean 'build'? Valid: build, list, verify"),
        (("trian",), "Unknown command 'trian'. Did you mean 'train'?"),
        (("--verbose",), "No such option"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_other_commands(here: Path, trained: Path, words: tuple[str, ...], said: str) -> None:
    assert said in mistake(*(str(trained) if word == "RUN" else word for word in words))


# What only the data can tell


def test_more_items_than_the_catalogue_has(trained: Path) -> None:
    for words in (("evaluate", trained, "--topk", "5", "31"), ("recommend", trained, "--users", "u1", "--k", "31")):
        assert "k must be between 1 and the 30 items that can be ranked, not 31" in mistake(*words)
    output("recommend", trained, "--users", "u1", "--k", "30")  # what is left of thirty


def test_a_user_that_nobody_knows(trained: Path) -> None:
    assert mistake("recommend", trained, "--users", "u1", "nobody").startswith(
        "No user 'nobody' in tiny; its users are u"
    )


def test_a_folder_that_no_recipe_built(here: Path) -> None:
    (here / "data").mkdir()
    assert "data was not built by a recipe: it has no paper/NAME/manifest.json" in mistake(
        "train", "--model", "GMF", "--dataset", "data"
    )


@pytest.mark.parametrize("spoil", ["changed", "truncated", "missing"])
def test_a_data_file_that_is_not_what_was_built(built: Path, here: Path, spoil: str) -> None:
    folder = shutil.copytree(built, here / "data")
    path = folder / "paper" / "tiny" / "tiny.train.inter"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\t5", b"\t4") if spoil == "changed" else content[:100])
    if spoil == "missing":
        path.unlink()
    said = mistake("train", "--model", "GMF", "--dataset", "data", *FAST, "--out", "a")
    assert str(path.relative_to(here)) in said
    assert ("has changed since it was built" in said) == (spoil != "missing")
    assert not (here / "a" / "config.yaml").exists()


# Plugins


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (:\n", "Plugin mine.py is not valid Python ("),
        ("1 / 0\n", "Plugin mine.py failed: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name\n", "Plugin mine.py cannot be imported: No module named 'nothing_of_that_name'"),
        ("import recdenoise\nrecdenoise.register(int)\n", "Plugin mine.py: register() takes a subclass of"),
        (
            "from recdenoise import Denoiser, register\n@register\nclass Mine(Denoiser):\n    name = 'normal'\n",
            "is taken by",
        ),
        (
            "from recdenoise import Denoiser, register\n@register\nclass Mine(Denoiser):\n    pass\n",
            "Mine.name is None",
        ),
    ],
)
def test_plugins_that_fail(here: Path, text: str, said: str) -> None:
    before = dict(denoisers._TABLE)
    (here / "mine.py").write_text(text)
    commands: list[Callable[[], str]] = [
        lambda: mistake("train", *BASE, "--plugin", "mine.py"),
        lambda: mistake("methods", "--plugin", "mine.py"),
        lambda: mistake("evaluate", "x", "--plugin", "mine.py"),
    ]
    for command in commands:
        found = command()
        assert said in found
        assert "mine.py" in found
    assert before == denoisers._TABLE


def test_an_interrupt_ends_with_130_and_one_line(built: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupted)
    result = run("train", "--model", "GMF", "--dataset", built, "--out", "x")
    assert result.exit_code == 130
    assert result.stderr == "recdenoise: interrupted; what was saved can be continued with --resume.\n"
