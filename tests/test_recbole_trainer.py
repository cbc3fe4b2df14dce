"""The trainer that RecBole's loops and scripts see: its arguments, files, logs, callbacks, and one added line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdenoise import UserError, run_recbole
from recdenoise.errors import TrainingError
from recdenoise.recbole_adapter import DenoisingTrainer
from tests.command import environment
from tests.own_data import prepared, short_run, write_mine


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's own .inter file."""
    return write_mine(tmp_path_factory.mktemp("mine"))


@pytest.fixture
def options(data_path: Path, here: Path) -> dict[str, Any]:
    """RecBole options of a short run that writes below an empty working folder."""
    return short_run(data_path, here)


def test_nan_stops_and_says_the_step(options: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"step \d+ of stage 'prior': training stopped\..* lower learning rate"):
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": "deca_p", "learning_rate": 1e30})


def test_nan_keeps_the_last_good_checkpoint(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config, network, (train, valid, _) = prepared("GMF", {**options, "denoiser": "normal", "checkpoint_seconds": 0.0})
    trainer = DenoisingTrainer(config, network)

    def spoil(epoch: int, score: float) -> None:
        with torch.no_grad():
            network.user_embedding.weight.fill_(torch.nan)

    with pytest.raises(TrainingError, match=rf"The last good checkpoint is {trainer.saved_model_file}"):
        trainer.fit(train, valid, callback_fn=spoil)
    state = torch.load(trainer.saved_model_file, weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state["modules"].values())
    assert state["position"]["stage_step"] == len(trainer.task.loader(trainer.denoiser.passes(None, 0)[0], (0, 0, 0)))


def test_callback_gets_recboles_arguments(options: dict[str, Any]) -> None:
    calls: list[tuple[int, float]] = []
    config, network, (train, valid, _) = prepared("GMF", {**options, "denoiser": "deca_p", "epochs": 3})
    trainer = DenoisingTrainer(config, network)
    best, result = trainer.fit(train, valid, callback_fn=lambda epoch, score: calls.append((epoch, score)))
    # The prior's three epochs rank too, but their score is not the target's.
    assert [epoch for epoch, _ in calls] == [3, 4, 5]
    assert best == result["ndcg@10"] == pytest.approx(max(score for _, score in calls), abs=5e-5)


@pytest.mark.parametrize("selector", ["loss", "last", "recall@5"])
def test_the_score_of_a_callback_is_the_valid_metric_whatever_selects(options: dict[str, Any], selector: str) -> None:
    calls: list[float] = []
    config, network, (train, valid, _) = prepared("GMF", {**options, "denoiser": "normal", "valid_selector": selector})
    trainer = DenoisingTrainer(config, network)
    trainer.fit(train, valid, callback_fn=lambda epoch, score: calls.append(score))
    assert len(calls) == 2
    assert calls == [row["valid_ndcg@10"] for row in trainer.history]


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"valid_metric": "MRR@10", "metrics": ["NDCG"], "valid_selector": "ndcg@10"}, "mrr@10"),
        ({"valid_selector": "ndcg@7"}, "ndcg@7"),
    ],
)
def test_a_metric_that_is_not_measured_fails_before_training(
    options: dict[str, Any], asked: dict[str, Any], missing: str
) -> None:
    config, network, (train, valid, _) = prepared("GMF", {**options, "denoiser": "normal", **asked})
    trainer = DenoisingTrainer(config, network)
    with pytest.raises(UserError, match=f"metrics and topk do not give {missing}; add it there"):
        trainer.fit(train, valid)
    assert trainer.history == []


def test_the_prior_of_the_published_code_begins_where_the_target_begins(options: dict[str, Any]) -> None:
    chosen = {"denoiser": {"name": "deca_p", "compat": "paper_code"}, "valid_selector": "last"}
    config, network, (train, valid, _) = prepared("GMF", {**options, **chosen})
    handed_in = {key: value.clone() for key, value in network.state_dict().items()}
    trainer = DenoisingTrainer(config, network)
    trainer.fit(train, valid)
    assert trainer.denoiser.target is network
    assert trainer.denoiser.prior is not network
    assert [row["stage"] for row in trainer.history] == ["prior", "prior", "train", "train"]
    again = trainer.task.new_target(0)
    assert again is not network
    assert all(torch.equal(handed_in[key], value) for key, value in again.state_dict().items())


def test_without_validation_data(options: dict[str, Any]) -> None:
    config, network, (train, _, test) = prepared("GMF", {**options, "denoiser": "normal"})
    trainer = DenoisingTrainer(config, network)
    assert trainer.fit(train) == (-1, None)
    assert trainer.evaluate(test)["recall@10"] > 0


def test_evaluate_before_fit(options: dict[str, Any]) -> None:
    config, network, (_, valid, _) = prepared("GMF", {**options, "denoiser": "normal"})
    with pytest.raises(UserError, match="Call fit before evaluate"):
        DenoisingTrainer(config, network).evaluate(valid)


def test_trainers_of_one_second_have_files_of_their_own(options: dict[str, Any]) -> None:
    config, network, _ = prepared("GMF", {**options, "denoiser": "normal"})
    names = {DenoisingTrainer(config, network).saved_model_file for _ in range(5)}
    assert len(names) == 5


def test_nothing_is_saved_where_nothing_is_asked_for(options: dict[str, Any], here: Path) -> None:
    run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal"}, saved=False)
    assert list((here / "saved").iterdir()) == []


def test_evaluate_a_saved_model_file(options: dict[str, Any]) -> None:
    config, network, (train, valid, test) = prepared("GMF", {**options, "denoiser": "normal"})
    trainer = DenoisingTrainer(config, network)
    trainer.fit(train, valid)
    before = trainer.evaluate(test)
    with torch.no_grad():
        network.user_embedding.weight.neg_()
    assert trainer.evaluate(test, load_best_model=False) != before
    assert trainer.evaluate(test, model_file=trainer.saved_model_file) == before


def test_resume_checkpoint_goes_on_to_the_same_end(options: dict[str, Any]) -> None:
    class Stop(Exception):
        pass

    def stop(epoch: int, score: float) -> None:
        raise Stop

    options |= {"denoiser": "ensemble", "epochs": 2, "checkpoint_seconds": 0.0, "dropout_prob": 0.2}
    config, network, (train, valid, _) = prepared("NeuMF", options)
    whole = DenoisingTrainer(config, network)
    whole.fit(train, valid)
    config, network, (train, valid, _) = prepared("NeuMF", options)
    broken = DenoisingTrainer(config, network)
    with pytest.raises(Stop):
        broken.fit(train, valid, callback_fn=stop)
    config, network, (train, valid, _) = prepared("NeuMF", options)
    resumed = DenoisingTrainer(config, network)
    resumed.resume_checkpoint(broken.saved_model_file)
    resumed.fit(train, valid)
    first, second = whole.denoiser.state_dict(), resumed.denoiser.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert resumed.train_loss_dict == whole.train_loss_dict
    order = {"eval_args": {**options["eval_args"], "order": "TO"}}
    for said, change in {
        "training interactions is": order,  # as many of them, but others
        "option seed": {"seed": 7},
        "option train_batch_size": {"train_batch_size": 64},
        "option lr": {"learning_rate": 0.5},
        "option epochs": {"epochs": 3},
        "option dropout_prob": {"dropout_prob": 0.1},
    }.items():
        config, network, (train, valid, _) = prepared("NeuMF", {**options, **change})
        if said == "option seed":  # another split, too
            said = "training interactions"
        other = DenoisingTrainer(config, network)
        other.resume_checkpoint(broken.saved_model_file)
        with pytest.raises(UserError, match=f"belongs to another run: its {said}"):
            other.fit(train, valid)
    with pytest.raises(UserError, match=r"There is no checkpoint nowhere\.pth"):
        resumed.resume_checkpoint("nowhere.pth")


def test_recboles_loader_says_that_a_checkpoint_is_not_its_own(options: dict[str, Any], here: Path) -> None:
    from recbole.quick_start import load_data_and_model

    run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal", "epochs": 1})
    (path,) = (here / "saved").glob("*.pth")
    with pytest.raises(UserError, match=f"{path.name} is no checkpoint of RecBole's"):
        load_data_and_model(str(path))


def test_tensorboard_and_logs_are_recboles(options: dict[str, Any], here: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal"})
    folder = max((here / "log_tensorboard").iterdir())
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) >= {"Loss/Train", "Vaild_score"}
    sums = [row["loss"] * row["steps"] for row in result.history]
    assert [event.value for event in events.Scalars("Loss/Train")] == pytest.approx(sums)
    scores = [row["valid_ndcg@10"] for row in result.history]
    assert [event.value for event in events.Scalars("Vaild_score")] == pytest.approx(scores)


# Scripts that know nothing of us but one line

SCRIPT = """
import recdenoise.recbole_adapter
import json, sys
from recbole.quick_start import run_recbole
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed, init_logger

options = json.load(open("options.json"))
denoised = {**options, "denoiser": {"name": "deca", "c_1": 10, "c_2": 10}}

def by_hand(config_dict):
    config = Config(model="BPR", dataset="mine", config_dict=config_dict)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train_data, valid_data, show_progress=False)
    return type(trainer).__name__, trainer.evaluate(test_data)

results = {
    "plain": run_recbole(model="BPR", dataset="mine", config_dict=options)["test_result"],
    "deca": run_recbole(model="BPR", dataset="mine", config_dict=denoised)["test_result"],
    "by hand": by_hand(denoised),
    "plain by hand": by_hand(options),
}
json.dump(results, open("results.json", "w"))
"""


def test_an_existing_script_needs_one_line(options: dict[str, Any], here: Path) -> None:
    (here / "script.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    (here / "options.json").write_text(json.dumps(options), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = "".join(path.read_text() for path in (here / "log").rglob("*.log")) + done.stdout + done.stderr
    assert "BPR is a pairwise model: DeCA trains it pointwise" in log
    results = json.loads((here / "results.json").read_text())
    assert results["deca"] != results["plain"]
    assert results["by hand"] == ["DenoisingTrainer", results["deca"]]
    assert results["plain by hand"] == ["Trainer", results["plain"]]
    ours = run_recbole("BPR", "mine", config_dict={**options, "denoiser": {"name": "deca", "c_1": 10, "c_2": 10}})
    assert ours.test_result == results["deca"]
    assert run_recbole("BPR", "mine", config_dict=options).test_result == results["plain"]


def test_metrics_of_items_work(options: dict[str, Any]) -> None:
    names = ["ItemCoverage", "AveragePopularity", "GiniIndex", "TailPercentage"]
    chosen = {"metrics": [*names, "NDCG"], "epochs": 1, "denoiser": "normal"}
    found = run_recbole("GMF", "mine", config_dict={**options, **chosen}).test_result
    assert {f"{name.lower()}@10" for name in names} <= found.keys()
    assert 0 < found["itemcoverage@10"] <= 1


def test_numbers_of_numpy_are_numbers(options: dict[str, Any]) -> None:
    numbers = {"epochs": np.int64(1), "learning_rate": np.float32(0.01), "denoiser_c_1": np.int64(10)}
    result = run_recbole("GMF", "mine", config_dict={**options, "denoiser": "deca", **numbers})
    assert len(result.history) == 1


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_a_seed_that_numpy_refuses_is_named(options: dict[str, Any], seed: int) -> None:
    with pytest.raises(UserError, match=r"'seed' is .*from 0 to 4294967295"):
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal", "seed": seed})


def test_a_checkpoint_folder_below_a_file(options: dict[str, Any], here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint_dir .*file/saved' cannot be used"):
        run_recbole(
            "GMF", "mine", config_dict={**options, "denoiser": "normal", "checkpoint_dir": str(here / "file/saved")}
        )
