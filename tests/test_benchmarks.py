"""The yardstick computes what the library computes, and the benchmark measures, prints and judges."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import reference, train_speed
from benchmarks.turns import Figure, compare
from recdenoise import denoisers
from recdenoise.denoisers import Clock, Denoiser, Stage
from recdenoise.loop import Loop, LoopConfig, Observer
from recdenoise.recbole_adapter.models import paper_model_config
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.recbole_adapter.trainer import model_builder, training_pairs
from recdenoise.task import Pass
from tests.tiny_recbole import tiny_config, tiny_dataset, write_inter

ROOT = Path(__file__).resolve().parents[1]

NAMES = {
    "MF": {"user": "user_embedding.weight", "item": "item_embedding.weight"},
    "GMF": {"user": "user_embedding.weight", "item": "item_embedding.weight", "head": "predict_layer"},
    "NeuMF": {
        "user_mf": "user_mf_embedding.weight",
        "item_mf": "item_mf_embedding.weight",
        "user_mlp": "user_mlp_embedding.weight",
        "item_mlp": "item_mlp_embedding.weight",
        "head": "predict_layer",
    },
    "LightGCN": {"user": "user_embedding.weight", "item": "item_embedding.weight"},
    "CDAE": {"user": "h_user.weight", "encoder": "h_item", "decoder": "out_layer"},
}
"""Where the yardstick keeps what the library's models keep."""


def pairs_of_parameters(plain: nn.Module, ours: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter of the yardstick's network beside the library's; all of both must be met."""
    where = {}
    for name, other in NAMES[type(ours).__name__].items():
        suffixes = [""] if other.endswith("weight") else [".weight", ".bias"]
        where |= {name + suffix: other + suffix for suffix in suffixes}
    theirs = dict(ours.named_parameters())
    if type(ours).__name__ == "NeuMF":
        hidden = [name for name in theirs if name.startswith("mlp_layers")]
        where |= {f"layers.{k // 2}.{name.rpartition('.')[2]}": name for k, name in enumerate(hidden)}
    parameters = dict(plain.named_parameters())
    assert set(where) == set(parameters)
    assert set(where.values()) == set(theirs)
    for name, other in where.items():
        yield parameters[name], theirs[other]


class Compare(Observer):
    """Copies the library's weights into the yardstick when the last stage begins, and keeps that stage's losses."""

    def __init__(self, denoiser: Denoiser, networks: dict[str, nn.Module]) -> None:
        self.denoiser, self.networks = denoiser, networks
        self.stage = ""
        self.losses: dict[str, list[float]] = {}

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self.stage = stage.name
        self.losses[stage.name] = []
        with torch.no_grad():
            for name, network in self.networks.items():
                for plain, ours in pairs_of_parameters(network, self.denoiser.module(name)):
                    plain.copy_(ours)

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        self.losses[self.stage].append(loss.item())


def build_both(
    folder: Path, model: str, method: str, options: dict[str, float]
) -> tuple[Denoiser, dict[str, nn.Module]]:
    """The library's denoiser on the tiny data and the yardstick's networks, weights not yet equal."""
    write_inter(folder)
    sizes = paper_model_config(model)
    if model == "CDAE":
        sizes["corruption_ratio"] = 0.0  # the two draw their masks differently
    config = tiny_config(folder, model, **sizes)
    dataset = tiny_dataset(config)
    users, items = training_pairs(dataset)
    task = RecBoleTask(
        users,
        items,
        dataset.user_num,
        dataset.item_num,
        new_model=model_builder(config, dataset, config.model_class),
        seed=5,
        batch_size=8 if model == "CDAE" else 64,
        device="cpu",
    )
    known = {name: value for name, value in options.items() if method != "normal" or name == "l2"}
    if method == "deca_p":
        known["prior_epochs"], known["prior_selector"] = 1, "last"  # type: ignore[assignment]
    denoiser = denoisers.get(method)(task, known)

    def plain() -> nn.Module:
        if model == "LightGCN":
            matrix = reference.adjacency(users, items, task.n_users, task.n_items)
            return reference.LightGCN(matrix, task.n_users, task.n_items)
        if model == "CDAE":
            rows = torch.zeros(task.n_users, task.n_items)
            rows[users, items] = 1.0
            return reference.CDAE(rows, corruption=0.0)
        return getattr(reference, model)(task.n_users, task.n_items)

    networks = {"target": plain()}
    if method != "normal":
        names = ("h", "h_prime", "auxiliary") if method == "deca" else ("h", "h_prime")
        networks |= {name: reference.MF(task.n_users, task.n_items) for name in names}
    if method == "deca_p":
        networks["prior"] = plain()
    return denoiser, networks


@pytest.mark.parametrize("model", ["GMF", "NeuMF", "LightGCN", "CDAE"])
@pytest.mark.parametrize(("method", "alpha"), [("normal", 1.0), ("deca", 1.0), ("deca", 0.0), ("deca_p", 0.3)])
def test_the_bare_step_trains_what_the_library_trains(tmp_path: Path, model: str, method: str, alpha: float) -> None:
    """Same weights, same batches: the same losses step by step and the same weights after two epochs."""
    options = {"l2": 3.0, "c_1": 7.0, "c_2": 5.0, "alpha": alpha}
    denoiser, networks = build_both(tmp_path, model, method, options)
    compare = Compare(denoiser, networks)
    loop = Loop(denoiser, denoiser.task, LoopConfig(epochs=2, lr=0.01, selector="last"), observer=compare)
    loop.run()

    options["l2"] *= denoiser.task.l2_scale
    bare = reference.Reference(method, options=reference.Options(**options, lr=0.01), **networks)
    losses, turn = [], 0
    stage = len(denoiser.stages()) - 1
    for epoch in range(2):
        for batch in denoiser.task.loader(Pass(), (stage, epoch, 0)).batches():
            step = reference.make_step(batch.inputs.users, batch.inputs.items, *(batch.inputs.rows or ()))
            losses.append(bare.loss(step, turn).item())
            bare.train_step(step, turn)
            turn += 1
    assert turn >= 6
    torch.testing.assert_close(compare.losses["train"], losses, rtol=1e-4, atol=1e-5)
    for name, network in networks.items():
        for plain, ours in pairs_of_parameters(network, denoiser.module(name)):
            torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_adam_seconds_leaves_the_parameters_alone() -> None:
    model = reference.GMF(5, 7)
    before = [p.detach().clone() for p in model.parameters()]
    seconds = reference.adam_seconds(list(model.parameters()), repeats=2)
    assert set(seconds) == {"fused", "foreach", "plain"}
    assert all(value > 0 for value in seconds.values())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("ratio", "limit", "at_least", "missed"),
    [
        (1.5, 1.6, False, False),
        (1.7, 1.6, False, True),
        (1.5, 1.4, True, False),
        (1.3, 1.4, True, True),
        (9, None, False, False),
    ],
)
def test_a_figure_knows_whether_it_missed(ratio: float, limit: float | None, at_least: bool, missed: bool) -> None:
    figure = Figure("x", 1.0, 1.0, ratio, limit, at_least)
    assert figure.missed is missed
    assert figure.line().endswith("MISSED") is missed


def test_a_ratio_is_that_of_medians() -> None:
    figure = compare("x", [1.0, 3.0, 100.0], [2.0, 0.1, 2.0], 2.0)
    assert (figure.ours, figure.yardstick, figure.ratio, figure.missed) == (3.0, 2.0, 1.5, False)


@pytest.mark.parametrize(
    ("ratio", "status", "last"), [(1.2, 0, "All 1 requirements are met."), (2.0, 1, "MISSED 1 of 1")]
)
def test_a_missed_ratio_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ratio: float, status: int, last: str
) -> None:
    monkeypatch.setattr(train_speed, "workplace", lambda: contextlib.nullcontext(Path()))
    found = [Figure("GMF deca", ratio, 1.0, ratio, 1.6), Figure("CDAE deca", 9.0, 1.0, 9.0)]
    monkeypatch.setattr(train_speed, "epochs", lambda *arguments: iter(found))
    assert train_speed.main(["--models", "CDAE"]) == status
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)


def test_an_unknown_model_is_refused_with_the_valid_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_speed.main(["--models", "BPR"])
    assert stopped.value.code == 2
    assert "'LightGCN'" in capsys.readouterr().err


def test_the_quick_benchmark_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The real command, on the real data of RecBole's wheel."""
    report = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_speed", "--quick", "--models", "GMF", "--json", str(report)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Quick run of 5 figures")
    record = json.loads(report.read_text())
    figures = {figure["name"]: figure for figure in record["figures"]}
    deca = figures["GMF deca: epoch / bare steps"]
    assert deca["limit"] == 1.6
    assert deca["ratio"] == pytest.approx(deca["ours"] / deca["yardstick"])
    assert all(figure["ours"] > 0 and figure["yardstick"] > 0 for figure in figures.values())
    # 77,834 positives in 39 steps: an epoch of a hundred times fewer would be another measurement
    assert 0.01 < deca["yardstick"] < 30
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
