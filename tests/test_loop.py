"""The one loop: stages, what is kept, what is reported, what stops it. On the toy task, against plain loops."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recdenoise import denoisers
from recdenoise.denoisers import Clock, Denoiser, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.loop import Loop, LoopConfig, Observer
from recdenoise.selection import Selection, check_selector
from recdenoise.task import Batch
from tests.toy import ToyTask
from tests.toy_runs import Recorder, Stop, same, trainer, weights

# What happens in order


def test_training_equals_a_plain_loop() -> None:
    task = ToyTask()
    found = trainer(task=task, options={"l2": 3.0})
    found.run()
    model = ToyTask().new_target(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(3):
        for batch in task.loader(found.denoiser.passes(Stage(), epoch)[0], (0, epoch, 0)).batches():
            n = len(batch.label) // 2
            losses = nn.functional.binary_cross_entropy_with_logits(model(*batch.inputs), batch.label, reduction="none")
            penalty = 3.0 / 2 / 12 * sum((p**2).sum() for p in model.parameters())
            optimizer.zero_grad()
            (losses[:n].mean() + losses[n:].mean() + penalty).backward()
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found.denoiser.state_dict()[f"target.{key}"], value, rtol=1e-4, atol=1e-6)


def test_observers_hear_of_everything_in_order() -> None:
    task = ToyTask()
    recorder = Recorder()
    loop = trainer("ensemble", task, observer=recorder, epochs=2, log_values={"loss"})
    history = loop.run()
    per_epoch = math.ceil(task.n_rows / task.batch_size)
    assert recorder.stages == [("member 1", 2, per_epoch, 0), ("member 2", 2, per_epoch, 0)]
    assert [(c.step, c.steps, c.epoch, c.epochs) for c in recorder.clocks] == [
        (step, 2 * per_epoch, step // per_epoch, 2) for _ in range(2) for step in range(2 * per_epoch)
    ]
    assert recorder.rows == history
    assert [(row["stage"], row["epoch"], row["steps"]) for row in history] == [
        (f"member {member}", epoch, per_epoch) for member in (1, 2) for epoch in (1, 2)
    ]
    losses = recorder.losses
    means = [sum(losses[i : i + per_epoch]) / per_epoch for i in range(0, len(losses), per_epoch)]
    assert [row["loss"] for row in history] == pytest.approx(means)
    assert all(row["seconds"] > 0 and math.isfinite(row["valid_loss"]) for row in history)


def test_what_a_stage_does_not_train_stays_frozen_and_in_eval_mode() -> None:
    seen: list[tuple[str, bool, bool]] = []

    class Watch(Observer):
        def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
            stage = loop.stages[loop.position.stage].name
            prior, target = loop.denoiser.module("prior"), loop.denoiser.module("target")
            seen.append((stage, prior.training, target.training))
            frozen = target if stage == "prior" else prior
            assert not any(p.requires_grad for p in frozen.parameters())

    loop = trainer("deca_p", observer=Watch(), epochs=1)
    before = weights(loop)
    loop.run()
    assert set(seen) == {("prior", True, False), ("train", False, True)}
    assert not loop.denoiser.training
    assert all(p.requires_grad for p in loop.denoiser.parameters())
    assert not torch.equal(weights(loop)["prior.user.weight"], before["prior.user.weight"])


def test_stages_may_have_epochs_of_their_own() -> None:
    history = trainer("deca_p", options={"prior_epochs": 2, "prior_selector": "last"}, epochs=4).run()
    assert [row["stage"] for row in history] == ["prior"] * 2 + ["train"] * 4


def test_every_stage_starts_from_its_own_seed() -> None:
    """Numbers drawn before a stage, from any generator, do not reach it: a resumed stage draws the same."""

    class Noisy(denoisers.get("normal")):  # type: ignore[misc]
        def losses(self, batch: Batch, clock: Clock) -> Any:
            drawn.append((torch.rand(()).item(), float(np.random.rand()), random.random()))
            return super().losses(batch, clock)

    runs = []
    for disturb in (1, 2):
        drawn: list[tuple[float, float, float]] = []
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        random.seed(disturb)
        task = ToyTask()
        Loop(Noisy(task), task, LoopConfig(epochs=1, selector="last")).run()
        runs.append(drawn)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0])


# Optimisers


def test_weight_decay_pulls_every_weight_to_zero() -> None:
    plain, decayed = trainer(epochs=3), trainer(epochs=3, weight_decay=0.5)
    plain.run()
    decayed.run()
    norms = [torch.cat([p.reshape(-1) for p in weights(loop).values()]).norm() for loop in (plain, decayed)]
    assert norms[1] < 0.9 * norms[0]


@pytest.mark.parametrize(("precision", "expected"), [("fp32", False), ("bf16", True)])
def test_networks_run_under_autocast_where_asked(precision: str, expected: bool) -> None:
    modes: set[tuple[bool, torch.dtype]] = set()

    class Watch(denoisers.get("normal")):  # type: ignore[misc]
        def losses(self, batch: Batch, clock: Clock) -> Any:
            out = super().losses(batch, clock)
            modes.add((torch.is_autocast_enabled("cpu"), out.loss.dtype))
            return out

    task = ToyTask()
    Loop(Watch(task), task, LoopConfig(epochs=1, selector="last", precision=precision)).run()  # type: ignore[arg-type]
    assert modes == {(expected, torch.float32)}


def test_gradients_are_clipped_over_all_parameters() -> None:
    norms: list[float] = []

    class Watch(Observer):
        def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
            grads = [p.grad.norm() for p in loop.denoiser.parameters() if p.grad is not None]
            norms.append(torch.stack(grads).norm().item())

    loop = trainer(epochs=1, clip_grad_norm=1e-3, observer=Watch())
    loop.run()
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


class Twins(Denoiser):
    """Two optimisers, two updates a step."""

    name, title, summary, paper = "twins", "Twins", "two updates a step", "nobody"

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {"user": Optim({"target.user": 0.0}), "item": Optim({"target.item": 0.0}, algorithm="sgd", lr=0.5)}

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        before = self.target.item.weight.detach().clone()
        yield Update(self.plain_losses(self.target, batch).loss, batch.groups, optimizer="user")
        assert torch.equal(before, self.target.item.weight), "another optimiser's parameters moved"
        yield Update(self.plain_losses(self.target, batch).loss, batch.groups, optimizer="item")
        assert not torch.equal(before, self.target.item.weight)


def test_several_updates_a_step_each_with_its_optimiser(tmp_path: Path) -> None:
    task = ToyTask()
    whole = Loop(Twins(task), task, LoopConfig(epochs=2, selector="last"))
    whole.run()
    cut = Loop(
        Twins(task), task, LoopConfig(epochs=2, selector="last"), checkpoint_path=tmp_path / "c.pt", observer=Stop(5)
    )
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = Loop(Twins(task), task, LoopConfig(epochs=2, selector="last"), checkpoint_path=tmp_path / "c.pt")
    assert rest.resume()
    rest.run()
    assert same(weights(whole), weights(rest))


def test_an_optimiser_without_parameters_is_refused() -> None:
    class Empty(denoisers.get("normal")):  # type: ignore[misc]
        def build(self, task: Any) -> None:
            super().build(task)
            self.target.requires_grad_(False)

    task = ToyTask()
    with pytest.raises(UserError, match="Nothing to train: target"):
        Loop(Empty(task), task, LoopConfig(selector="last")).run()


# Which epoch is kept


class Scripted:
    """Validation that answers from a list, and remembers the weights it was asked about."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values, self.asked = name, iter(values), 0
        self.states: list[dict[str, torch.Tensor]] = []
        self.loop: Loop | None = None

    def __call__(self, score: Any, wanted: set[str]) -> dict[str, float]:
        assert wanted == {self.name}
        assert self.loop is not None
        assert not any(module.training for module in self.loop._trained(self.loop.stages[0]).values())
        self.states.append(weights(self.loop))
        return {self.name: next(self.values)}


def scripted(name: str, values: list[float], **config: Any) -> tuple[Loop, Scripted]:
    validate = Scripted(name, values)
    loop = trainer(validate=validate, **{"epochs": len(values), "selector": name, **config})
    validate.loop = loop
    return loop, validate


def test_the_best_epoch_is_restored_and_patience_counts_from_it() -> None:
    loop, validate = scripted("ndcg@5", [0.1, 0.3, 0.2, 0.3, 0.25, 0.9], patience=3)
    history = loop.run()
    assert [row["valid_ndcg@5"] for row in history] == [0.1, 0.3, 0.2, 0.3, 0.25]  # a tie is no new best
    assert same(weights(loop), validate.states[1])


def test_losses_are_minimised() -> None:
    loop, validate = scripted("loss", [0.5, 0.2, 0.3, 0.1, 0.4], patience=None)
    assert len(loop.run()) == 5
    assert same(weights(loop), validate.states[3])


def test_values_that_are_no_numbers_are_never_best() -> None:
    loop, validate = scripted("loss", [math.nan, 0.2, -math.inf, math.nan, 0.3], patience=3)
    assert len(loop.run()) == 5
    assert same(weights(loop), validate.states[1])


def test_last_keeps_the_last_and_asks_nothing() -> None:
    loop = trainer(selector="last", validate=lambda *_: pytest.fail("asked"))
    assert len(loop.run()) == 3


def test_evaluation_every_few_epochs_and_at_the_end() -> None:
    loop, _ = scripted("loss", [0.5, 0.4, 0.3], eval_every=2, epochs=5)
    rows = loop.run()
    assert [("valid_loss" in row) for row in rows] == [False, True, False, True, True]


def test_evaluation_every_few_steps() -> None:
    task = ToyTask()
    per_epoch = math.ceil(task.n_rows / task.batch_size)
    validate = Scripted("loss", [0.5, 0.4, 0.45, 0.41, 0.42, 0.43])
    loop = trainer(task=task, validate=validate, selector="loss", eval_steps=3, patience=3, epochs=10)
    validate.loop = loop
    rows = loop.run()
    # After steps 3, 6, 9, ... (counted from 0): three evaluations after the best one, training stops at step 15.
    assert len(validate.states) == 5
    assert sum(row["steps"] for row in rows) == 16
    assert len(rows) == math.ceil(16 / per_epoch)
    assert same(weights(loop), validate.states[1])


def test_the_published_rule_counts_rises_and_keeps_the_last() -> None:
    values = [0.5, 0.4, 0.45, 0.42, 0.43, 0.2]
    loop, validate = scripted("loss", values, patience=2, paper_code_stopping=True)
    assert len(loop.run()) == 5  # the second rise over the evaluation before it
    assert same(weights(loop), validate.states[4])


def test_further_values_are_recorded_but_do_not_choose() -> None:
    task = ToyTask()
    rows = trainer(task=task, selector="loss", log_values={"ndcg@5", "trimmed_loss"}).run()
    assert all({"valid_loss", "valid_ndcg@5", "valid_trimmed_loss"} <= row.keys() for row in rows)


def test_selectors_need_validation_data() -> None:
    task = ToyTask()
    with pytest.raises(UserError, match="Selector 'loss' needs validation data"):
        Loop(denoisers.get("deca_p")(task, {"prior_selector": "loss"}), task, LoopConfig(selector="last"))


@pytest.mark.parametrize(
    ("given", "read"), [("last", "last"), ("Loss", "loss"), (" NDCG@20 ", "ndcg@20"), ("trimmed", "trimmed")]
)
def test_selectors_are_read_in_any_case(given: str, read: str) -> None:
    assert check_selector(given) == read
    assert Selection(given, None).selector == read


def test_a_callers_own_draws_go_on_where_they_stood() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    trainer(epochs=1).run()
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
