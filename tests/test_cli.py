"""The command line: what it writes, what it prints, and that its parts agree with each other."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import yaml

import recdenoise
from recdenoise import denoisers
from recdenoise.cli import main
from recdenoise.recbole_adapter.experiment import load
from recdenoise.recbole_adapter.models import MODELS
from recdenoise.recbole_adapter.settings import read_settings
from tests.built_folder import Split, write_built
from tests.command import FAST, environment, figures, mistake, output, run, train

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
    assert all(0 <= float(row["valid_ndcg@20"]) <= 1 for row in rows)

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


PAGES = """
import resource
from recdenoise import cli

cli.prepare_process()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.zeros(1 << 24)  # 64 MiB
before = faults()
for _ in range(20):
    torch.zeros(1 << 24)
print(faults() - before)
"""


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.is_file() or "[never]" in LARGE_PAGES.read_text(), reason="the system has no large pages"
)
def test_commands_ask_for_large_pages() -> None:
    """Twenty tensors of 64 MiB one after the other come in pages of 2 MiB, and of 4 KiB where the user says so."""

    def pages(choice: dict[str, str]) -> int:
        kept = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        words = [sys.executable, "-c", PAGES]
        return int(subprocess.run(words, env=kept | choice, capture_output=True, check=True, text=True).stdout)

    small = 20 * (1 << 26) // resource.getpagesize()
    assert pages({}) < small / 10
    if "[madvise]" in LARGE_PAGES.read_text():
        assert pages({"THP_MEM_ALLOC_ENABLE": "0"}) > small / 2


def test_a_catalogue_of_few_items_is_tested_at_the_cut_offs_that_it_has(here: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"u{user},i{item},{rng.integers(1, 9)}" for user in range(30) for item in rng.permutation(8)[:5]]
    (here / "few.csv").write_text("user,item,dwell\n" + "\n".join(lines) + "\n")
    columns = ("--user", "user", "--item", "item", "--clean", "dwell > 3")
    output("data", "build", "csv", "--from", "few.csv", *columns, "--out", "data")
    words = ("train", "--model", "GMF", "--dataset", "data", "--denoiser", "normal", "--quiet", "--set", "epochs=1")
    told = mistake(*words, "--out", "runs/x")
    assert "Selector ndcg@20: only 8 items can be ranked" in told
    assert not (here / "runs" / "x" / "config.yaml").exists()
    output(*words, "--set", "valid_selector=ndcg@5", "--out", "runs/y")
    record = json.loads((here / "runs" / "y" / "result.json").read_text())
    assert sorted(record["test"]) == ["ndcg@3", "ndcg@5", "recall@3", "recall@5"]


def test_a_clean_test_of_strangers_is_refused_before_training(built: Path, here: Path) -> None:
    def strangers(parts: Split) -> None:
        parts["clean_test"] = parts["clean_test"].take(np.flatnonzero(parts["clean_test"].users == "u1"))
        parts["train"] = parts["train"].take(np.flatnonzero(parts["train"].users != "u1"))

    write_built(here / "data", edit=strangers)
    words = ("train", "--model", "GMF", "--dataset", "data", "--denoiser", "normal", "--quiet", "--set", "epochs=1")
    assert "Training saw none of the users of the clean test" in mistake(*words, "--protocol", "clean", "--out", "x")
    assert not (here / "x" / "config.yaml").exists()
    output(*words, "--protocol", "paper", "--out", "y")
