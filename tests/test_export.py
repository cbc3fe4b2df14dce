"""`export`: which rows go, which weights come, and that the folder is one like any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import data_recipes
from recdenoise import own_data
from recdenoise.recbole_adapter.experiment import load
from tests.command import mistake, output, train


def inter(folder: Path, split: str) -> pd.DataFrame:
    return own_data.read_inter(folder / "paper" / "tiny" / f"tiny.{split}.inter").rows


def test_the_most_suspicious_rows_go(built: Path, trained: Path, here: Path) -> None:
    printed = output("export", trained, "--drop", "0.05", "--out", "cleaner")
    output("find-noise", trained, "--out", "s.csv")
    suspects = pd.read_csv("s.csv")["row"][:20]
    before = inter(built, "train")
    pd.testing.assert_frame_equal(inter(here / "cleaner", "train"), before.drop(suspects).reset_index(drop=True))
    for split in ("valid", "test", "clean_test"):
        name = f"paper/tiny/tiny.{split}.inter"
        assert (here / "cleaner" / name).read_bytes() == (built / name).read_bytes()
    assert "The 20 training rows of 400 that were most likely noise were left out." in printed
    assert "train on it by --dataset cleaner" in printed


def test_weights_are_p_clean(built: Path, trained: Path, here: Path) -> None:
    output("export", trained, "--weights", "--out", "weighted")
    rows = inter(here / "weighted", "train")
    pd.testing.assert_frame_equal(rows.drop(columns="weight"), inter(built, "train"))
    expected = load(trained).denoiser.clean_probability().numpy()
    np.testing.assert_array_equal(rows["weight"].astype(np.float32), expected)
    assert "weight" not in inter(here / "weighted", "valid")


@pytest.mark.parametrize("words", [("--drop", "0.1"), ("--weights",)])
def test_the_folder_is_one_like_any_other(trained: Path, here: Path, words: tuple[str, ...]) -> None:
    output("export", trained, *words, "--out", "x")
    folder = here / "x" / "paper" / "tiny"
    assert "tiny, exported, protocol paper, all files as built" in output("data", "verify", folder)
    train(here / "x", "--denoiser", "normal", "--out", "n")
    assert "% of" not in output("find-noise", "n", "--top", "0")
    # And once more, from the run on the export.
    output("export", "n", *words, "--out", "y")
    derived = data_recipes.load_manifest(here / "y" / "paper" / "tiny")["derived"]
    assert derived["by"] == {"model": "GMF", "denoiser": "normal", "seed": 2020}
    assert derived["from"]["derived"]["by"]["denoiser"] == "deca_p"


@pytest.mark.parametrize(("words", "columns"), [(("--drop", "0.1"), set()), (("--weights",), {"weight"})])
def test_plain_recbole_reads_it(trained: Path, here: Path, words: tuple[str, ...], columns: set[str]) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    output("export", trained, *words, "--out", "x")
    config = Config(
        model="BPR",
        dataset="tiny",
        config_file_list=["x/paper/tiny/tiny.yaml"],
        config_dict={"data_path": "x/paper", "use_gpu": False},
    )
    dataset = data_preparation(config, create_dataset(config))[0]._dataset
    assert set(dataset.inter_feat.columns) >= {"user_id", "item_id", "rating"} | columns
    if columns:
        expected = load(trained).denoiser.clean_probability().numpy()
        np.testing.assert_allclose(dataset.inter_feat["weight"], expected, rtol=1e-6)
    else:
        assert len(dataset.inter_feat) == 360


def test_injected_flags_stay_with_their_rows(built: Path, here: Path) -> None:
    output("corrupt", built, "--rate", "0.2", "--out", "noisy")
    train(here / "noisy", "--denoiser", "normal", "--out", "n")
    output("export", "n", "--drop", "0.1", "--out", "x")
    output("find-noise", "n")
    gone = pd.read_csv("n/suspects.csv")[:50]
    assert (inter(here / "x", "train")["injected"] == "1").sum() == 100 - gone["noise"].sum()


def test_same_run_same_bytes(trained: Path, here: Path) -> None:
    hashes = []
    for out in ("a", "b"):
        output("export", trained, "--drop", "0.05", "--out", out)
        folder = here / out / "paper" / "tiny"
        hashes.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()})
    assert hashes[0] == hashes[1]
    output("export", trained, "--drop", "0.05", "--out", "a")  # it is there already


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give --drop SHARE or --weights."),
        (("--drop", "0.1", "--weights"), "Give --drop SHARE or --weights, not both."),
        (("--drop", "0"), "--drop is 0; it must lie between 0 and 1, both excluded."),
        (("--drop", "1"), "--drop is 1; it must lie"),
        (("--drop", "-0.1"), "--drop is -0.1; it must lie"),
        (("--drop", "nan"), "--drop is nan; it must lie"),
        (("--drop", "5%"), "'5%' is not a valid float"),
        (("--drop", "0.001"), "--drop 0.001 of 400 rows is 0: nothing is left out."),
        (("--drop", "0.9999"), "--drop 0.9999 of 400 rows is 400: nothing is left in."),
    ],
)
def test_mistakes_write_nothing(trained: Path, here: Path, words: tuple[str, ...], said: str) -> None:
    assert said in mistake("export", trained, *words, "--out", "x")
    assert not (here / "x").exists()


def test_places_that_are_no_good(trained: Path, built: Path, here: Path) -> None:
    assert "is not a run" in mistake("export", here, "--weights", "--out", "x")
    output("export", trained, "--drop", "0.05", "--out", "x")
    assert "x/paper/tiny is taken by something else" in mistake("export", trained, "--drop", "0.1", "--out", "x")
    before = json.loads((built / "paper/tiny/manifest.json").read_text())
    assert "is taken by something else" in mistake("export", trained, "--drop", "0.1", "--out", built)
    assert json.loads((built / "paper/tiny/manifest.json").read_text()) == before
    assert "Missing option '--out'" in mistake("export", trained, "--weights")
