"""What every method for images must do, on a task of tiny images. A new method is tested by being in the table."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recdenoise.denoisers import Clock, Denoiser, Optim
from recdenoise.loop import Observer
from tests.toy_images import TinyImages, build, image_loop, image_task
from vision import methods
from vision.task import ImageTask

NAMES = methods.names()


def trained(name: str, task: ImageTask, options: dict[str, Any] | None = None, **config: Any) -> Denoiser:
    loop = image_loop(name, task, options, **config)
    loop.run()
    return loop.denoiser


def scores(denoiser: Denoiser) -> Tensor:
    return denoiser.task.scan(denoiser.score)


def assert_same_state(a: Denoiser, b: Denoiser) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def test_names_are_words_in_the_order_of_the_table() -> None:
    assert NAMES[0] == "normal"
    assert len(set(NAMES)) == len(NAMES)


def step_down(denoiser: Denoiser, optim: Optim) -> None:
    """A small step: a layer that starts at zero passes no gradient on to those before it until it has moved."""
    with torch.no_grad():
        for module in optim.modules:
            for parameter in denoiser.module(module).parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.01)


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_config_round_trip(self, name: str) -> None:
        method = methods.get(name)
        for options in ({}, method.brief, method.neutral or {}):
            config = method.read_config(options)
            assert method.read_config(config.to_dict()) == config

    def test_is_described(self, name: str) -> None:
        method = methods.get(name)
        assert all(len(text) > 2 for text in (method.title, method.summary, method.paper, method.__doc__ or ""))
        undescribed = [field for field in method.Config.__dataclass_fields__ if field not in described(method.Config)]
        assert not undescribed

    def test_gradients_are_finite_and_reach_what_trains(self, name: str) -> None:
        """In the first and in the last epoch of every stage, one after the other, as the loop does."""
        task = image_task()
        denoiser = build(name, task)
        for number, stage in enumerate(denoiser.stages()):
            optimizers = denoiser.optimizers(stage)
            with torch.no_grad():
                denoiser.begin_stage(stage)
            epochs = stage.span(3).epochs
            reached: set[str] = set()
            for epoch in sorted({0, epochs - 1}):
                with torch.no_grad():
                    denoiser.begin_epoch(stage, epoch)
                for place, sweep in enumerate(denoiser.passes(stage, epoch)):
                    for step, batch in enumerate(task.loader(sweep, (number, epoch, place)).batches()):
                        clock = Clock(step, 4 * epochs, epoch, epochs, dict.fromkeys(optimizers, 0.01), place)
                        for update in denoiser.step(stage, batch, clock):
                            denoiser.zero_grad()
                            assert update.optimizer in optimizers
                            assert update.loss.shape == (sum(update.groups),)
                            assert update.weight is None or not update.weight.requires_grad
                            assert update.weight is None or (update.weight.isfinite() & (update.weight >= 0)).all()
                            update.reduce().backward()
                            for key, parameter in denoiser.named_parameters():
                                if parameter.grad is not None:
                                    assert parameter.grad.isfinite().all()
                                    if parameter.grad.any():
                                        reached.add(key)
                            step_down(denoiser, optimizers[update.optimizer])
            wanted = {k for k, _ in denoiser.named_parameters() if any(k.startswith(f"{m}.") for m in stage.train)}
            assert reached >= wanted, sorted(wanted - reached)

    def test_equals_normal_at_neutral(self, name: str) -> None:
        method = methods.get(name)
        if method.neutral is None:
            assert method.neutral_reason
            return
        plain = trained("normal", image_task())
        neutral = trained(name, image_task(), method.neutral, brief=False)
        torch.testing.assert_close(scores(neutral).softmax(1), scores(plain).softmax(1), rtol=1e-4, atol=1e-5)

    def test_same_seed_same_result_and_another_seed_another(self, name: str) -> None:
        assert_same_state(trained(name, image_task(dropout=0.2)), trained(name, image_task(dropout=0.2)))
        assert not torch.equal(scores(trained(name, image_task(seed=1))), scores(trained(name, image_task(seed=2))))

    @pytest.mark.parametrize("stop_after", [1, 6, 11])
    def test_resume_equals_no_interruption(self, name: str, stop_after: int, tmp_path: Path) -> None:
        whole = image_loop(name, image_task(dropout=0.3))
        history = whole.run()

        class Interrupt(Observer):
            steps = 0

            def on_step(self, clock: Clock, loss: Tensor) -> None:
                self.steps += 1
                if self.steps == stop_after:
                    signal.raise_signal(signal.SIGINT)

        path = tmp_path / "checkpoint.pt"
        first = image_loop(name, image_task(dropout=0.3), checkpoint_path=path, observer=Interrupt())
        with pytest.raises(KeyboardInterrupt):
            first.run()
        torch.manual_seed(123456)  # a new process starts from another state
        second = image_loop(name, image_task(dropout=0.3), checkpoint_path=path)
        assert second.resume()
        rows = second.run()
        assert_same_state(whole.denoiser, second.denoiser)
        assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in history]

    def test_learns_the_classes_behind_the_noise(self, name: str) -> None:
        task = image_task(n=132)
        denoiser = trained(name, task, epochs=20, lr=0.02)
        data = TinyImages.draw(90, 0.0, 11)
        predicted = task.scan_data(data, denoiser.score).argmax(1)
        assert (predicted == data.true_labels).double().mean() > 0.6

    def test_clean_probability_is_one_value_a_row(self, name: str) -> None:
        task = image_task(n=132)
        denoiser = trained(name, task, epochs=12)
        probability = denoiser.clean_probability()
        assert probability.shape == (132,)
        assert ((probability >= 0) & (probability <= 1)).all()
        clean = task.labels == task.source("train").true_labels  # type: ignore[attr-defined]
        assert probability[clean].mean() > probability[~clean].mean()
        with torch.no_grad():
            held_out = denoiser.held_out_probability(task.scan, task.labels)
        if name == "joint_optim":  # it remembers labels that it found for the rows it learned from
            assert ((held_out >= 0) & (held_out <= 1)).all()
        else:
            torch.testing.assert_close(held_out, probability)


def described(config: type) -> set[str]:
    """Names of the fields that have a docstring under them, in the class or in one that it extends."""
    import ast
    import inspect
    import textwrap

    names: set[str] = set()
    for cls in config.__mro__[:-1]:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                names.add(field.target.id)
    return names
