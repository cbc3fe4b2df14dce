"""Training that stops: numbers that are none, signals, crashes; and what goes on from where it stopped."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from recdenoise.denoisers import Clock, Stage
from recdenoise.errors import TrainingError, UserError
from recdenoise.loop import Loop, LoopConfig, Observer
from tests.toy import ToyTask
from tests.toy_runs import Recorder, Stop, same, trainer, weights

# Numbers that are none


class Spoil(Observer):
    """Breaks a weight after a step: the step's own loss was still finite."""

    def __init__(self, step: int, value: float, one: bool) -> None:
        self.step, self.value, self.one = step, value, one
        self.loop: Loop | None = None

    def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
        assert self.loop is not None
        if clock.step == self.step:
            with torch.no_grad():
                weight = self.loop.denoiser.module("target").user.weight
                weight[3 if self.one else slice(None)] = self.value


def spoiled(step: int, value: float = math.nan, one: bool = True, **config: Any) -> Loop:
    """Breaks the weights of one user, who may not come again in the epoch, or of all."""
    observer = Spoil(step, value, one)
    loop = trainer(observer=observer, **config)
    observer.loop = loop
    return loop


def test_a_loss_that_is_no_number_names_its_step() -> None:
    with pytest.raises(TrainingError, match=r"The loss is nan at step 5 of stage 'train': .* \(now 0\.05\)"):
        spoiled(4, one=False).run()


def test_nothing_broken_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingError, match=rf"at step 4 of .* The last good checkpoint is {path}\."):
        spoiled(4, checkpoint_path=path, checkpoint_seconds=0.0).run()
    state = torch.load(path, weights_only=True)
    assert state["position"]["stage_step"] == 4
    assert all(bool(value.isfinite().all()) for value in state["modules"].values())
    # and what is there can be gone on with
    rest = trainer(checkpoint_path=path, checkpoint_seconds=0.0)
    assert rest.resume()
    rest.run()
    assert same(weights(rest), weights_of_a_whole_run())


def weights_of_a_whole_run(**config: Any) -> dict[str, torch.Tensor]:
    loop = trainer(**config)
    loop.run()
    return weights(loop)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_broke_in_the_last_step_end_in_an_error(value: float) -> None:
    task = ToyTask()
    last = math.ceil(task.n_rows / task.batch_size) - 1
    with pytest.raises(TrainingError, match=rf"A weight of target is not finite at step {last} "):
        spoiled(last, value, task=task, epochs=1).run()


def test_without_a_checkpoint_none_is_promised(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        spoiled(0, checkpoint_path=tmp_path / "c.pt").run()
    assert "checkpoint" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Stopping and going on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("method", ["normal", "deca_p", "ensemble", "deca"])
def test_a_signal_stops_between_steps_and_resume_ends_alike(tmp_path: Path, method: str, number: int) -> None:
    before = signal.getsignal(signal.SIGINT)  # a job in the background may ignore it
    path = tmp_path / "c.pt"
    config: dict[str, Any] = {"epochs": 3, "selector": "ndcg@5", "task": ToyTask(dropout=0.3)}
    whole = trainer(method, **config)
    history = whole.run()
    steps = sum(row["steps"] for row in history)
    for after in (1, steps // 3, steps // 2, steps - 2):
        path.unlink(missing_ok=True)
        cut = trainer(method, checkpoint_path=path, observer=Stop(after, number), **config)
        with pytest.raises(KeyboardInterrupt):
            cut.run()
        rest = trainer(method, checkpoint_path=path, **config)
        assert rest.resume()
        found = rest.run()
        assert same(weights(whole), weights(rest)), after
        for one, other in zip(found, history, strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert signal.getsignal(signal.SIGINT) is before


def test_the_best_epoch_survives_a_stop_after_it(tmp_path: Path) -> None:
    """The first epoch stays the best; patience that had begun to run out before the stop goes on running out after."""

    def worse_every_epoch(loop: Loop) -> None:
        loop.validate = lambda score, wanted: {"ndcg@5": 1.0 / (1 + loop.position.epoch)}

    config: dict[str, Any] = {"epochs": 9, "selector": "ndcg@5", "patience": 3}
    whole = trainer(**config)
    worse_every_epoch(whole)
    history = whole.run()
    assert len(history) == 4
    first = trainer(**{**config, "epochs": 1})
    first.run()
    assert same(weights(whole), weights(first))
    cut = trainer(checkpoint_path=tmp_path / "c.pt", observer=Stop(history[0]["steps"] * 2 + 1), **config)
    worse_every_epoch(cut)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = trainer(checkpoint_path=tmp_path / "c.pt", **config)
    worse_every_epoch(rest)
    assert rest.resume()
    assert len(rest.run()) == 4
    assert same(weights(whole), weights(rest))


def test_a_second_signal_interrupts_at_once() -> None:
    recorder = Recorder()

    class Twice(Stop):
        def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
            recorder.on_step(clock, loss)
            super().on_step(clock, loss)

    with pytest.raises(KeyboardInterrupt):
        trainer(observer=Twice(2, times=2)).run()
    assert len(recorder.clocks) == 2


def test_training_outside_the_main_thread() -> None:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(trainer().run()))
    thread.start()
    thread.join()
    assert len(done[0]) == 3


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    loop = trainer(checkpoint_path=tmp_path / "none.pt")
    assert loop.resume() is False
    assert len(loop.run()) == 3
    assert loop.finished


def test_resuming_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    first = trainer("deca_p", checkpoint_path=path)
    history = first.run()
    content = path.read_bytes()
    recorder = Recorder()
    again = trainer("deca_p", checkpoint_path=path, observer=recorder)
    assert again.resume()
    assert again.finished
    assert again.run() == history
    assert recorder.clocks == []
    assert same(weights(first), weights(again))
    assert path.read_bytes() == content


def test_resume_between_stages(tmp_path: Path) -> None:
    """The checkpoint that the end of a stage writes holds no optimiser: the next stage begins anew."""
    path = tmp_path / "c.pt"

    class Crash(Observer):
        def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
            if stage.name == "train":
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        trainer("deca_p", checkpoint_path=path, observer=Crash()).run()
    state = torch.load(path, weights_only=True)
    assert state["position"]["stage"] == 1
    assert state["optimizers"] == {}
    rest = trainer("deca_p", checkpoint_path=path)
    assert rest.resume()
    rest.run()
    whole = trainer("deca_p")
    whole.run()
    assert same(weights(whole), weights(rest))


def test_checkpoints_are_no_more_frequent_than_asked(tmp_path: Path) -> None:
    path, times = tmp_path / "c.pt", []

    class Watch(Observer):
        def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
            times.append(path.exists())

    trainer(checkpoint_path=path, observer=Watch(), checkpoint_seconds=3600.0).run()
    assert not any(times)
    assert path.exists()  # the end of a stage always saves
    path.unlink()
    times.clear()
    trainer(checkpoint_path=path, observer=Watch(), checkpoint_seconds=0.0).run()
    assert times == [False] + [True] * (len(times) - 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "r_ce"}, "its denoiser is 'normal', here it is 'r_ce'"),
        ({"identity": {"model": "GMF", "seed": 2}}, "its seed is 1, here it is 2"),
        ({"identity": {"model": "NeuMF", "seed": 1}}, "its model is 'GMF', here it is 'NeuMF'"),
        ({"identity": {"model": "GMF", "seed": 1, "version": "2"}}, "its version is None, here it is '2'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    path = tmp_path / "c.pt"
    trainer(checkpoint_path=path, identity={"model": "GMF", "seed": 1}).run()
    content = path.read_bytes()
    loop = trainer(**{"identity": {"model": "GMF", "seed": 1}, **other}, checkpoint_path=path)
    before = weights(loop)
    with pytest.raises(UserError, match=message):
        loop.resume()
    assert same(before, weights(loop))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "'epochs' is 0; it must be 1 or more"),
        ({"lr": 0.0}, "'lr' is 0.0; it must be above 0"),
        ({"lr": math.nan}, "'lr' is nan"),
        ({"eval_every": 0}, "'eval_every' is 0"),
        ({"eval_steps": 0}, "'eval_steps' is 0"),
        ({"patience": 0}, "'patience' is 0"),
        ({"weight_decay": -1.0}, "'weight_decay' is -1.0"),
        ({"selector": "recall"}, "needs a cut-off"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoopConfig(**options)
