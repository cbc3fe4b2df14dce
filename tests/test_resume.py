"""Runs that are stopped, by Ctrl-C or by a power cut, and gone on with: the same bits as if nothing had happened."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import recdenoise
from tests.command import environment, mistake, output, run

CASES: dict[str, tuple[str, ...]] = {
    "GMF with DeCA(p)": ("--model", "GMF", "--denoiser", "deca_p", "--set", "train_batch_size=16"),
    "CDAE with DeCA": ("--model", "CDAE", "--denoiser", "deca", "--set", "train_batch_size=3"),
    "LightGCN ensemble": ("--model", "LightGCN", "--denoiser", "ensemble", "--set", "train_batch_size=16"),
    "NeuMF with dropout": (
        *("--model", "NeuMF", "--denoiser", "t_ce", "--set", "train_batch_size=16"),
        *("--set", "dropout_prob=0.3", "--set", "mlp_embedding_size=8", "--set", "mlp_hidden_size=[16, 8]"),
    ),
}
COMMON = ("--set", "epochs=8", "--set", "checkpoint_seconds=0.1", "--set", "stopping_step=50", "--quiet")


def child(words: list[str], folder: str) -> None:
    """The command line in a process that can be killed."""
    os.chdir(folder)
    from recdenoise.cli import main

    main(words)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that have RecBole imported already: they are forked from one that does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recdenoise.recbole_adapter.experiment", "recdenoise.reports.terminal", __name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        forkserver.ensure_running()
    return context


def rows(out: Path) -> list[dict[str, str]]:
    """The epochs in metrics.csv, but for the seconds they took."""
    path = out / "metrics.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, f"the process ended with {process.exitcode} before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_end(one: Path, other: Path) -> None:
    """Weights bit for bit, every epoch's loss and validation, the test, and the settings."""
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (one, other))
    assert first["identity"] == second["identity"]
    assert first["modules"].keys() == second["modules"].keys()
    for key, value in first["modules"].items():
        assert torch.equal(value, second["modules"][key]), key
    assert rows(one) == rows(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for key in ("test", "epochs", "counts", "parameters"):
        assert results[0][key] == results[1][key]
    assert (one / "config.yaml").read_text() == (other / "config.yaml").read_text()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("case", "how"),
    [
        *((case, signal.SIGINT) for case in CASES),
        ("GMF with DeCA(p)", signal.SIGKILL),
        ("LightGCN ensemble", signal.SIGKILL),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_end_is_the_same_bit_for_bit(
    built: Path, here: Path, processes: Any, case: str, how: signal.Signals
) -> None:
    words = ["train", "--dataset", str(built), *CASES[case], *COMMON]
    output(*words, "--out", "whole")
    process = processes.Process(target=child, args=([*words, "--out", "cut"], str(here)))
    process.start()
    cut = here / "cut"
    stages = len({row["stage"] for row in rows(here / "whole")})
    wait_for(lambda: len(rows(cut)) >= 3 and (cut / "checkpoint.pt").is_file(), process)
    os.kill(process.pid, how)
    process.join()
    assert process.exitcode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert not (cut / "result.json").exists()
    before = len(rows(cut))
    assert 3 <= before < 8 * stages
    printed = output("train", "--resume", "cut")
    assert "cut  (prepare" in printed
    assert_same_end(here / "whole", cut)
    assert not [path.name for path in cut.iterdir() if path.name.endswith(".part")] or how == signal.SIGKILL


def test_ctrl_c_on_the_real_command_line(built: Path, here: Path) -> None:
    words = ("train", "--model", "GMF", "--dataset", str(built), "--denoiser", "deca_p", "--out", "cut")
    process = subprocess.Popen(
        [sys.executable, "-m", "recdenoise.cli", *words, "--set", "train_batch_size=4", "--set", "epochs=300"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(rows(here / "cut")) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr == "recdenoise: interrupted; what was saved can be continued with --resume.\n"
    state = torch.load(here / "cut" / "checkpoint.pt", weights_only=True)
    assert state["position"]["stage_step"] > 0
    assert len(state["history"]) == len(rows(here / "cut"))


def test_resuming_a_finished_run_repeats_its_result_and_changes_nothing(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "run")
    before = snapshot(copy)
    result = json.loads((copy / "result.json").read_text())
    printed = output("train", "--resume", copy)
    assert f"{result['test']['recall@20']:.4f}" in printed
    assert f"train {result['seconds']['train']:.1f} s" in printed
    assert snapshot(copy) == before


def test_a_run_that_trained_but_was_not_tested_is_tested(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "run")
    for name in ("result.json", "model.pt"):
        (copy / name).unlink()
    output("train", "--resume", copy)
    assert_same_end(trained, copy)


def test_resume_by_the_same_words(built: Path, here: Path) -> None:
    """`--resume` without a folder goes on with `--out`, and starts where there is nothing yet."""
    words = ("train", "--model", "GMF", "--dataset", built, *COMMON, "--set", "epochs=2", "--out", "x", "--resume")
    output(*words)
    before = snapshot(here / "x")
    output(*words)
    assert snapshot(here / "x") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "8"), "its seed is 7, here it is 8"),
        (("--model", "MF"), "its model is 'GMF', here it is 'MF'"),
        (("--denoiser", "normal"), "its denoiser is 'deca', here it is 'normal'"),
        (("--set", "denoiser.alpha=1"), "its option denoiser.alpha is 0.5, here it is 1.0"),
        (("--set", "learning_rate=0.5"), "its option learning_rate is 0.001, here it is 0.5"),
        (("--protocol", "clean"), "its protocol is 'paper', here it is 'clean'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(
    built: Path, here: Path, words: tuple[str, ...], said: str
) -> None:
    base = ("train", "--model", "GMF", "--dataset", built, "--denoiser", "deca", "--seed", "7", "--quiet")
    base += ("--set", "epochs=1", "--set", "train_batch_size=64", "--out", "x")
    output(*base)
    before = snapshot(here / "x")
    assert said in mistake(*base, *words, "--resume")
    assert snapshot(here / "x") == before


def test_a_checkpoint_of_another_version_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "run")
    state = torch.load(copy / "checkpoint.pt", weights_only=True)
    state["identity"]["version"] = "0.0.1"
    torch.save(state, copy / "checkpoint.pt")
    said = mistake("train", "--resume", copy)
    assert f"its version is '0.0.1', here it is '{recdenoise.__version__}'" in said
    torch.save({**state, "format": 7}, copy / "checkpoint.pt")
    assert "has checkpoint format 7" in mistake("train", "--resume", copy)


def test_an_edited_config_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "epochs": 50}))
    before = snapshot(copy)
    assert "its option epochs is 3, here it is 50" in mistake("train", "--resume", copy)
    assert snapshot(copy) == before


def test_without_resume_nothing_is_overwritten(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "run")
    before = snapshot(copy)
    result = run("train", "--model", "GMF", "--dataset", "ml-100k", "--out", copy)
    assert result.exit_code == 2
    assert snapshot(copy) == before
