"""Published settings: every file is whole, and resolves to what it says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from recdenoise import denoisers, presets
from recdenoise.recbole_adapter.settings import (
    resolve,
)


def test_every_preset_is_whole() -> None:
    cells = presets.available()
    assert len(cells) == len(set(cells))
    assert {dataset for dataset, _, _ in cells} == {"ml-100k", "modcloth", "adressa", "electronics"}
    allowed = {"epochs", "learning_rate", "train_batch_size", "valid_selector", "stopping_step", "denoiser"}
    allowed |= {"denoiser_under_paper_code"}
    for dataset, model, denoiser in cells:
        cell = presets.load("paper", dataset, model, denoiser)
        assert {"epochs", "learning_rate", "train_batch_size", "valid_selector", "denoiser"} <= cell.keys() <= allowed
        settings = resolve(model, dataset, denoiser, preset="paper")
        assert settings.method.name == denoiser
        assert settings.loop.epochs == cell["epochs"]
        assert settings.loop.lr == cell["learning_rate"]
        assert settings.batch_size == cell["train_batch_size"]
        assert settings.loop.selector == cell["valid_selector"]
        found = settings.config.to_dict()
        assert {key: found[key] for key in cell["denoiser"]} == cell["denoiser"]
        assert ("c_1" in cell["denoiser"]) == denoiser.startswith("deca")
        if denoiser.startswith("deca"):
            assert found["c_1"] in (1, 10, 100, 1000)
            assert found["c_2"] in (1, 10, 100, 1000)
            assert found["alpha"] in (0, 0.5, 1)
        assert found["l2"] in (0, 0.01, 0.1, 1, 10, 100, 1000)
    methods = {denoiser for _, _, denoiser in cells}
    assert methods >= {"normal", "deca", "deca_p"}
    assert set(cells) == set(itertools.product({d for d, _, _ in cells}, ("GMF", "NeuMF", "CDAE", "LightGCN"), methods))


@pytest.mark.parametrize("denoiser", ["wbpr", "r_ce", "ensemble"])
def test_methods_without_a_published_row_take_the_plain_one(denoiser: str) -> None:
    plain = presets.load("paper", "ml-100k", "NeuMF", "normal")
    assert presets.load("paper", "ml-100k", "NeuMF", denoiser) == plain
    settings = resolve("NeuMF", "ml-100k", denoiser, preset="paper")
    assert settings.loop.epochs == plain["epochs"]
    assert settings.config.to_dict()["l2"] == plain["denoiser"]["l2"]
    defaults = denoisers.get(denoiser).read_config({}).to_dict()
    assert {**defaults, "l2": plain["denoiser"]["l2"]} == settings.config.to_dict()


@pytest.mark.parametrize("inside", ["", "paper/ml-100k"])
def test_a_built_folder_finds_its_preset(tmp_path: Path, inside: str) -> None:
    for protocol in ("paper", "clean"):
        (tmp_path / "out" / protocol / "ml-100k").mkdir(parents=True)
        (tmp_path / "out" / protocol / "ml-100k" / "manifest.json").write_text("{}")
    settings = resolve("GMF", str(tmp_path / "out" / inside), "deca", preset="paper")
    assert settings.loop.epochs == presets.load("paper", "ml-100k", "GMF", "deca")["epochs"]
