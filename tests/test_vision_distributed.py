"""Several processes train what one would: choices, memories, resumed runs and files, by two processes over gloo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdenoise import parallel
from recdenoise.denoisers import Denoiser
from recdenoise.errors import UserError
from recdenoise.parallel import ALONE, Processes
from tests.command import environment
from tests.toy_images import TinyImages, image_task
from tests.two_processes import AUGMENT, LOGITS, double_precision, settings, trained
from vision import distributed, experiment, methods
from vision import train as program
from vision.loader import shared_size

TOLERANCE = 1e-9
"""Sums of doubles in another order, over some tens of steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two")
    train, test = TinyImages.draw(132, 0.0, 7), TinyImages.draw(60, 0.0, 9)
    arrays = {"images": train.images, "labels": train.labels, "images_test": test.images, "labels_test": test.labels}
    np.savez(path / "small.npz", **{name: value.numpy() for name, value in arrays.items()})
    return path


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What the two processes found, by rank."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.two_processes"]
    env = {**environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words, str(folder)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a), default=0.0)


@pytest.mark.parametrize("name", methods.names())
def test_two_processes_end_where_one_does(two: list[dict[str, Any]], name: str) -> None:
    """Parameters, and what a method remembers of every row, with a network without norm layers."""
    first, second = (found["methods"][name] for found in two)
    one = trained(name, ALONE)
    assert apart(first["state"], one["state"]) < TOLERANCE
    assert apart(first["state"], second["state"]) == 0.0
    assert float((first["clean_probability"] - one["clean_probability"]).abs().max()) < 1e-5
    for ours, theirs in zip(first["history"], one["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-5)), key
    assert first["history"] == second["history"]


def test_each_process_augments_its_half_of_a_batch(two: list[dict[str, Any]]) -> None:
    assert [found["methods"]["normal"]["seen"] for found in two] == [[8], [8]]
    assert trained("normal", ALONE)["seen"] == [16]


def test_losses_are_ranked_over_the_whole_batch(two: list[dict[str, Any]]) -> None:
    one = trained("co_teaching", ALONE)["kept"]
    for found in two:
        kept = found["methods"]["co_teaching"]["kept"]
        assert len(kept) == len(one) == 2 * 3 * 4  # networks, epochs, steps
        assert all(torch.equal(a, b) for a, b in zip(kept, one, strict=True))
    assert {len(places) for places in one} == {16, 11}


def test_elr_remembers_the_rows_of_every_process(two: list[dict[str, Any]]) -> None:
    memory = two[1]["methods"]["elr"]["state"]["memory"]
    one = trained("elr", ALONE)["state"]["memory"]
    assert float((memory - one).abs().max()) < TOLERANCE
    assert int((memory.sum(1) > 0).sum()) == 66


def test_norm_layers_hold_the_same_statistics_everywhere(two: list[dict[str, Any]]) -> None:
    first, second = (found["norm"]["state"] for found in two)
    assert apart(first, second) == 0.0
    one = trained("normal", ALONE, norm=True, average=0.5)["state"]
    means = [key for key in one if key.endswith("running_mean")]
    assert means
    # Each half of a batch is normalised by itself: near, and no more than that.
    assert all(torch.allclose(first[key], one[key], atol=0.1) for key in means)


def test_what_the_processes_share(two: list[dict[str, Any]]) -> None:
    weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
    every = LOGITS @ weight
    (torch.linalg.det(every.t() @ every) + every.exp().sum(0).prod()).backward()
    for rank, found in enumerate(each["primitives"] for each in two):
        torch.testing.assert_close(found["whole"], weight.grad)
        assert found["mean"].tolist() == [1.5, 1.5]
        assert found["mean_gradient"].tolist() == [1.5, 15.0]
        assert found["uneven"].tolist() == list(range(7))
        assert found["mine"].tolist() == ([0, 3] if rank == 0 else [2, 1])
        assert found["agree"] == [(True, False), (False, False), (True, False)]


def test_one_process_writes(two: list[dict[str, Any]], folder: Path) -> None:
    main, other = (found["runs"] for found in two)
    assert other["written"] == []
    assert {"checkpoint.pt", "config.yaml", "metrics.csv", "model.pt", "labels.npz", "result.json"} <= {
        *main["written"]
    }
    assert {path.name for path in (folder / "whole").iterdir()} == {
        "checkpoint.pt",
        "config.yaml",
        "metrics.csv",
        "model.pt",
        "labels.npz",
        "result.json",
    }
    assert main["record"]["processes"] == 2
    assert main["record"]["test"] == other["record"]["test"]


def model(path: Path) -> dict[str, Any]:
    return torch.load(path / "model.pt", weights_only=True)


def test_a_run_equals_that_of_one_process(two: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    with double_precision():
        experiment.train(settings(folder / "small.npz"), tmp_path / "one")
    one, both = model(tmp_path / "one"), model(folder / "whole")
    assert apart(one["modules"], both["modules"]) < TOLERANCE
    with np.load(tmp_path / "one" / "labels.npz") as a, np.load(folder / "whole" / "labels.npz") as b:
        np.testing.assert_array_equal(a["given"], b["given"])
        np.testing.assert_allclose(a["clean_probability"], b["clean_probability"], atol=1e-5)


def test_asking_one_process_to_stop_stops_all_and_the_run_goes_on(two: list[dict[str, Any]], folder: Path) -> None:
    assert [found["runs"]["stopped"] for found in two] == [True, True]
    position = two[0]["runs"]["position"]
    assert position == two[1]["runs"]["position"]
    assert (position["epoch"], position["stage_step"]) == (1, 12)  # asked after 9 steps, agreed at the next fourth
    assert apart(model(folder / "whole")["modules"], model(folder / "cut")["modules"]) == 0.0


def test_a_loss_that_breaks_in_one_process_is_told_by_all(two: list[dict[str, Any]]) -> None:
    assert two[0]["broken"] == two[1]["broken"]
    assert two[0]["broken"].startswith("The loss is nan at step 0 of stage 'train'")


def test_processes_with_other_data_are_refused(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["other_data"].startswith("The processes do not have the same training labels")


# Mistakes, before anything is started


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that the program answers a mistake with."""
    assert program.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("recdenoise: ")


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun's first of three processes sees its environment."""
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("three")
def test_a_batch_that_does_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dataset", "no.npz", "--network", "mlp", "--method", "gce", "--set", "batch_size=32")
    expected = "A batch of 32 images is not divisible among 3 processes: set batch_size to a multiple of 3."
    assert told(capsys, *words) == expected


@pytest.mark.usefixtures("three")
def test_a_numbered_device(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dataset", "no.npz", "--network", "mlp", "--device", "cuda:1", "--set", "batch_size=30")
    assert told(capsys, *words) == "Option 'device' is 'cuda:1'; with several processes leave its number out."


@pytest.mark.usefixtures("three")
def test_a_mistaken_option_is_told_as_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--dataset", "x.npz", "--bogus").startswith("No such option")
    assert told(capsys, "--dataset", "x.npz", "--method", "elrr").startswith(
        "Unknown method 'elrr'. Did you mean 'elr'?"
    )


@pytest.mark.usefixtures("three")
def test_without_the_engine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "accelerate" else find(name))
    words = ("--dataset", "no.npz", "--network", "mlp", "--set", "batch_size=30")
    expected = "Training in several processes needs Accelerate: pip install 'recdenoise[distributed]'."
    assert told(capsys, *words) == expected


class Whole(Denoiser):
    """Says nothing about several processes."""

    name, title, summary, paper = "whole", "Whole", "-", "-"


def test_a_method_that_does_not_say_that_it_can(tmp_path: Path) -> None:
    sentence = "whole trains in one process only; there are 2"
    with pytest.raises(UserError, match=sentence):
        Whole(image_task(augment=AUGMENT, parallel=Processes(0, 2, 0)))
    Whole(image_task(augment=AUGMENT))
    plan = settings(tmp_path / "no.npz")
    object.__setattr__(plan, "method", Whole)
    with pytest.raises(UserError, match=sentence):
        distributed.check(plan, Processes(0, 2, 0))


def test_an_augmentation_that_knows_whole_batches_only() -> None:
    with pytest.raises(UserError, match="function cannot augment a part of a batch"):
        image_task(parallel=Processes(0, 2, 0))


def test_a_process_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="Process 2 on this machine finds 1 GPUs: lower --nproc-per-node"):
        Processes(1, 2, 1).start(torch.device("cuda"))


def test_sizes_of_shared_batches() -> None:
    assert shared_size(16, 66, 2) == 16
    assert shared_size(16, 11, 1) == 11
    assert shared_size(16, 11, 2) == 10
    with pytest.raises(UserError, match="A batch of 9 images is not divisible among 2 processes"):
        shared_size(9, 66, 2)
    with pytest.raises(UserError, match="A pass has 1 images for 2 processes"):
        shared_size(16, 1, 2)


@pytest.mark.parametrize(("n", "size"), [(8, 2), (7, 3), (2, 5)])
def test_shares_cover_everything_once(n: int, size: int) -> None:
    parts = [list(range(n))[Processes(rank, size, rank).share(n)] for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_nobody_else_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.from_environment() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parallel.from_environment() is ALONE
