"""``recdenoise vision``: runs and their files, going on, measuring again, and mistakes in one sentence."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import recdenoise
from recdenoise import checkpoint
from recdenoise.errors import UserError
from tests.command import mistake, output, run
from tests.toy_images import TinyImages
from tests.toy_runs import Stop
from vision import experiment
from vision.settings import Settings, from_dict, parse_assignments, read_settings, resolve

FAST = ("--set", "batch_size=16", "--set", "optimizer=adam", "--set", "crop_pad=0", "--network", "mlp", "--quiet")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a hundred and thirty-two images to train on, their true labels, and sixty to test with."""
    path = tmp_path_factory.mktemp("images") / "small.npz"
    train, test = TinyImages.draw(132, 0.0, 7), TinyImages.draw(60, 0.0, 9)
    arrays = {"images": train.images, "labels": train.labels, "images_test": test.images, "labels_test": test.labels}
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    return path


@pytest.fixture(scope="module")
def finished(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of DeCA(p); read only."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    words = ("vision", "train", "--dataset", small, "--method", "deca_p", "--noise", "symmetric:0.3", "--epochs", "4")
    output(*words, *FAST, "--probe", "--out", out)
    return out


def settings(small: Path, **changes: Any) -> Settings:
    options: dict[str, Any] = {"batch_size": 16, "optimizer": "adam", "crop_pad": 0, "epochs": 3}
    places = {"noise": "symmetric:0.3", "seed": 1, **changes}
    method = places.pop("method", "deca_p")
    return resolve(str(small), "mlp", method, run_options=options, **places)


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {"config.yaml", "metrics.csv", "checkpoint.pt", "model.pt", "labels.npz", "result.json"}
    assert {path.name for path in finished.iterdir()} == names
    record = json.loads((finished / "result.json").read_text())
    for part in ("test", "valid"):
        for end in ("last", "best_val"):
            assert 0 <= record[part][end]["accuracy"] <= 1
    assert record["noise"]["spec"] == "symmetric-any:0.3"
    assert 0.1 < record["noise"]["rate"] < 0.3  # a third of the chosen labels stay what they were
    assert record["epochs"] == {"prior": 4, "train": 4}
    assert record["versions"]["recdenoise"] == recdenoise.__version__
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {"loss", "lr", "valid_accuracy", "valid_loss", "test_accuracy"} <= rows[0].keys()
    best = max(float(row["valid_accuracy"]) for row in rows if row["stage"] == "train")
    assert record["valid"]["best_val"]["accuracy"] == pytest.approx(best)
    assert record["test"]["last"]["accuracy"] == pytest.approx(float(rows[-1]["test_accuracy"]))


def test_what_is_thought_of_every_label_stands_in_the_order_of_the_data(finished: Path, small: Path) -> None:
    with np.load(finished / "labels.npz") as found, np.load(small) as data:
        np.testing.assert_array_equal(found["row"], np.arange(132))
        np.testing.assert_array_equal(found["true"], data["labels"])
        wrong = found["given"] != found["true"]
        assert json.loads((finished / "result.json").read_text())["noise"]["rate"] == pytest.approx(wrong.mean())
        assert found["clean_probability"].shape == (132,)


def test_evaluate_repeats_the_result(finished: Path, small: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "result.json").read_text())
    printed = output("vision", "evaluate", finished, "--json", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == {"test": record["test"], "valid": record["valid"]}
    assert f"{100 * record['test']['last']['accuracy']:.2f} %" in printed
    output("vision", "evaluate", finished, "--dataset", small, "--split", "test", "--json", tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text())["data"] == record["test"]


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "model.pt", weights_only=True)


@pytest.mark.parametrize("after", [2, 9, 15])
def test_a_stopped_run_goes_on_to_the_same_bits(small: Path, tmp_path: Path, after: int) -> None:
    plan = settings(small)
    whole = experiment.train(plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        experiment.train(plan, tmp_path / "cut", observer=Stop(after, signal.SIGTERM))
    assert not (tmp_path / "cut" / "result.json").exists()
    rest = experiment.train(read_settings(tmp_path / "cut"), tmp_path / "cut", resume=True)
    drop = {"seconds"}
    assert {k: v for k, v in rest.record.items() if k not in drop} == {
        k: v for k, v in whole.record.items() if k not in drop
    }
    a, b = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert all(torch.equal(a["modules"][key], b["modules"][key]) for key in a["modules"])
    for end in ("last", "best_val"):
        for name, weights in a["ends"][end].items():
            assert all(torch.equal(value, b["ends"][end][name][key]) for key, value in weights.items())
    with np.load(tmp_path / "whole" / "labels.npz") as one, np.load(tmp_path / "cut" / "labels.npz") as other:
        assert all(np.array_equal(one[key], other[key]) for key in one.files)


def test_a_finished_run_stays_as_it_is(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    output("vision", "train", "--resume", copy, "--quiet")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert "holds a run already" in mistake("vision", "train", "--dataset", "x.npz", "--network", "mlp", "--out", copy)


def test_a_checkpoint_that_lacks_a_part_is_one_sentence(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    for command, name, part, said in (
        (("train", "--resume"), "checkpoint.pt", "position", "a run that can go on: it lacks 'position'."),
        (("evaluate",), "model.pt", "used", "a finished run: it lacks 'used'."),
    ):
        state = checkpoint.load(copy / name)
        state.pop(part)
        checkpoint.save(copy / name, state)
        assert mistake("vision", *command, copy).endswith(f"{name} is not a checkpoint of {said}")


def test_settings_survive_the_way_through_a_file(small: Path) -> None:
    plan = settings(small, valid=30, images=100, seed=np.int64(2))
    assert from_dict(yaml.safe_load(yaml.safe_dump(plan.to_dict()))) == plan


def test_parts_of_the_data_do_not_overlap(small: Path) -> None:
    prepared = experiment.prepare(settings(small, method="mw_net", clean=12, images=100, valid=0.2))
    train, valid = (set(rows.tolist()) for rows in prepared.rows)
    assert (len(train), len(valid), len(train & valid)) == (68, 20, 0)
    assert prepared.clean is not None
    assert len(prepared.clean) == 12
    with np.load(small) as data:
        for row, image in zip(prepared.rows[0], prepared.train.images, strict=True):
            np.testing.assert_array_equal(image[0].numpy(), data["images"][row, 0])
        np.testing.assert_array_equal(data["labels"][prepared.rows[0]], prepared.train.true_labels.numpy())
    again = experiment.prepare(settings(small, method="mw_net", clean=12, images=100, valid=0.2))
    np.testing.assert_array_equal(prepared.rows[0], again.rows[0])


def test_trusting_labels_that_nobody_knows_to_be_right_is_said(small: Path) -> None:
    """With noise that was added the true labels are known, without it the file's own have to do."""
    given = experiment.prepare(settings(small, method="mw_net", noise=None, clean=12))
    assert given.train.notes == (
        "No true labels are known: the given ones of 12 images, drawn at random, are trusted.",
    )
    assert not experiment.prepare(settings(small, method="mw_net", clean=12)).train.notes
    assert not experiment.prepare(settings(small, noise=None)).train.notes


def test_other_data_is_looked_for_where_the_runs_own_was(tmp_path: Path) -> None:
    for number, root in enumerate(("own", "other")):
        for split in ("train", "test"):
            drawn = TinyImages.draw(30, 0.0, number)
            (tmp_path / root / "mnist").mkdir(parents=True, exist_ok=True)
            arrays = {"images": drawn.images[:, 0].numpy(), "labels": drawn.labels.numpy()}
            np.savez(tmp_path / root / "mnist" / f"{split}.npz", **arrays)
    words = (
        "--dataset",
        "mnist",
        "--root",
        tmp_path / "own",
        "--network",
        "mlp",
        "--method",
        "normal",
        "--epochs",
        "1",
    )
    output("vision", "train", *words, "--set", "batch_size=8", "--quiet", "--out", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    found = []
    for more in ((), ("--root", tmp_path / "other")):
        words = ("--dataset", "mnist", *more, "--json", tmp_path / "again.json")
        output("vision", "evaluate", tmp_path / "run", *words)
        found.append(json.loads((tmp_path / "again.json").read_text())["data"])
    assert found[0] == record["test"]
    assert found[1] != record["test"]


def test_data_without_a_test_part_is_not_tested(tmp_path: Path) -> None:
    data = TinyImages.draw(60, 0.3, 3)
    np.savez(tmp_path / "mine.npz", images=data.images.numpy(), labels=data.labels.numpy())
    options = {"batch_size": 16, "epochs": 1}
    result = experiment.train(resolve(str(tmp_path / "mine.npz"), "mlp", "normal", run_options=options), None)
    assert "test" not in result.record
    assert result.record["noise"] == {"spec": None, "rate": None}


def test_assignments_are_for_the_run_or_the_method() -> None:
    found = parse_assignments(["epochs=5", "method.c_1=10", "milestones=[3, 5]", "lr=1e-2"])
    assert found == ({"epochs": 5, "milestones": [3, 5], "lr": "1e-2"}, {"c_1": 10})
    for text in ("epochs", "=3", "model.x=1", "epochs=[1"):
        with pytest.raises(UserError, match="--set"):
            parse_assignments([text])


def test_methods_are_listed() -> None:
    printed = output("vision", "methods")
    assert "DeCA(p)" in printed
    assert "itlm" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "train needs --dataset"),
        (("--dataset", "fashion-mnits"), "Did you mean 'fashion-mnist'"),
        (("--dataset", "nowhere.npz"), "nowhere.npz"),
        (("--method", "decap"), "Did you mean 'deca_p'"),
        (("--network", "resnet23"), "Unknown network 'resnet23'"),
        (("--noise", "symetric:0.4"), "Did you mean 'symmetric"),
        (("--noise", "symmetric:1.4"), "The noise rate is 1.4"),
        (("--noise", "symmetric"), "needs its rate"),
        (("--set", "epoch=3"), "Did you mean 'epochs'"),
        (("--set", "c_1=3"), "--set method.c_1=VALUE"),
        (("--set", "method.c1=3"), "Did you mean 'c_1'"),
        (("--set", "method.alpha=3"), "from 0 to 1"),
        (("--set", "batch_size=1000"), "fewer than one batch of 1000"),
        (("--images", "1000"), "images is 1000"),
        (("--valid", "0"), "stops its prior by validation accuracy"),
        (("--clean", "110"), "leaves none of 106"),
        (("--device", "cuda:7"), "'device' is 'cuda:7'"),
        (("--resume", "nowhere"), "nowhere is not a run"),
    ],
)
def test_mistakes_are_one_sentence(small: Path, here: Path, words: tuple[str, ...], said: str) -> None:
    base = ("--dataset", str(small), *FAST, "--out", "x") if words and words[0] not in ("--resume",) else ()
    assert said in mistake("vision", "train", *base, *words)
    assert not (here / "x" / "checkpoint.pt").exists()


def test_evaluate_of_what_is_no_finished_run(finished: Path, tmp_path: Path) -> None:
    assert "is not a run" in mistake("vision", "evaluate", tmp_path)
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "model.pt").unlink()
    assert "has not finished; continue it with: recdenoise vision train --resume" in mistake("vision", "evaluate", copy)
    (copy / "config.yaml").write_text("a: 1\n")
    assert "no run of recdenoise vision" in mistake("vision", "evaluate", copy)


def test_resume_takes_its_settings_from_the_run(finished: Path) -> None:
    assert "leave out --seed" in mistake("vision", "train", "--resume", finished, "--seed", "3")
    assert run("vision", "--help").exit_code == 0
