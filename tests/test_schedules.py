"""Learning rates, optimisers and averaged weights: against torch's own and against plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recdenoise.averaging import Averaging
from recdenoise.denoisers import Clock, Optim, Stage, Update
from recdenoise.denoisers.base import Span
from recdenoise.errors import UserError
from recdenoise.loop import Loop, LoopConfig
from recdenoise.schedules import Schedule
from recdenoise.task import Batch
from tests.toy_images import build, image_loop, image_task
from tests.toy_runs import Recorder, Stop, same, weights


def factors(schedule: Schedule, epochs: int) -> list[float]:
    return [schedule.factor(epoch, epochs) for epoch in range(epochs)]


def torch_factors(make: Any, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_are_those_of_torch() -> None:
    lr = torch.optim.lr_scheduler
    step = torch_factors(lambda o: lr.MultiStepLR(o, [80, 100], 0.1), 120)
    assert factors(Schedule("step", (80, 100)), 120) == pytest.approx(step)
    assert factors(Schedule("step", (2 / 3, 5 / 6)), 120) == pytest.approx(step)
    for share, epochs, epoch in [(0.55, 100, 55), (0.07, 100, 7), (0.14, 50, 7), (0.6667, 120, 80), (0.001, 10, 1)]:
        assert factors(Schedule("step", (share,)), epochs) == [1.0] * epoch + [0.1] * (epochs - epoch)
    cosine = torch_factors(lambda o: lr.CosineAnnealingLR(o, 50, eta_min=0.01), 50)
    assert factors(Schedule("cosine", floor=0.01), 50) == pytest.approx(cosine)


def test_linear_falls_from_its_start_to_the_floor() -> None:
    assert factors(Schedule("linear", start=2), 6) == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])
    assert factors(Schedule("linear", start=0.5, floor=0.2), 4) == pytest.approx([1, 1, 1, 0.6])
    assert factors(Schedule(), 3) == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "poly"}, "one of constant, step, cosine, linear"),
        ({"milestones": (0.0,)}, "above 0"),
        ({"gamma": 0.0}, "'gamma' is 0.0"),
        ({"floor": 1.5}, "from 0 to 1"),
        ({"start": -1.0}, "zero or more"),
    ],
)
def test_schedules_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "below 1"),
        ({"nesterov": True}, "momentum is above 0"),
        ({"average": 1.0}, "below 1"),
        ({"clip_grad_norm": 0.0}, "'clip_grad_norm' is 0.0"),
        ({"clip_grad_norm": -1.0}, "above 0, or null"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoopConfig(**options)


def test_sgd_with_momentum_and_steps_equals_a_plain_loop() -> None:
    task = image_task()
    schedule = Schedule("step", (1, 2), gamma=0.5)
    settings: dict[str, Any] = {"algorithm": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    recorder = Recorder()
    loop = image_loop("normal", task, selector="last", schedule=schedule, observer=recorder, lr=0.1, **settings)
    model = image_task().new_target(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    rows = loop.run()
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5**epoch
        for batch in task.loader(loop.denoiser.passes(Stage(), epoch)[0], (0, epoch, 0)).batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs), batch.label).backward()
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loop.denoiser.state_dict()[f"target.{key}"], value, rtol=1e-4, atol=1e-6)
    assert [row["lr"] for row in rows] == [0.1, 0.05, 0.025]
    assert {clock.rates["target"] for clock in recorder.clocks if clock.epoch == 2} == {0.025}


def test_what_a_method_declares_comes_before_the_run() -> None:
    class Slow(type(build("normal", image_task()))):  # type: ignore[misc]
        def stages(self) -> list[Stage]:
            return [Stage("warm", lr=0.5, epochs=1), Stage()]

        def optimizers(self, stage: Stage) -> dict[str, Optim]:
            out = super().optimizers(stage)
            if stage.name == "train":
                out["target"] = Optim({"target": 0.0}, "adam", 0.25, schedule=Schedule("linear"), weight_decay=0.0)
            return out

    seen: list[tuple[str, str, float, float]] = []

    class Watch(Recorder):
        def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
            group = loop.optimizers["target"].param_groups[0]
            kind = type(loop.optimizers["target"]).__name__
            seen.append((loop.stages[loop.position.stage].name, kind, group["lr"], group["weight_decay"]))

    task = image_task()
    loop = image_loop("normal", task, observer=Watch(), algorithm="sgd", weight_decay=0.125, epochs=2)
    loop.denoiser = Slow(task)
    loop.stages = loop.denoiser.stages()
    loop._learnable = {key for key, _ in loop.denoiser.named_parameters()}
    loop.run()
    assert list(dict.fromkeys(seen)) == [
        ("warm", "SGD", 0.5, 0.125),
        ("train", "Adam", 0.25, 0.0),
        ("train", "Adam", 0.125, 0.0),
    ]


def test_the_rates_of_a_stage_are_of_its_own_optimisers(tmp_path: Path) -> None:
    class Named(type(build("normal", image_task()))):  # type: ignore[misc]
        def stages(self) -> list[Stage]:
            return [Stage("first", epochs=1), Stage("second", epochs=2)]

        def optimizers(self, stage: Stage) -> dict[str, Optim]:
            return {stage.name: Optim({"target": 0.0}, "adam", 0.5 if stage.name == "first" else 0.25)}

        def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
            for update in super().step(stage, batch, clock):
                yield replace(update, optimizer=stage.name)

    def loop(**options: Any) -> Loop:
        task = image_task()
        made = image_loop("normal", task, schedule=Schedule("step", (1,), gamma=0.5), **options)
        made.denoiser = Named(task)
        made.stages = made.denoiser.stages()
        made._learnable = {key for key, _ in made.denoiser.named_parameters()}
        return made

    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        loop(checkpoint_path=path, observer=Stop(6)).run()  # within the second stage's first epoch
    rest = loop(checkpoint_path=path)
    assert rest.resume()
    for each in (loop(), rest):
        assert [row["lr"] for row in each.run()] == [0.5, 0.25, 0.125]


def test_stages_that_are_stretches_of_the_run_share_its_epochs_and_its_schedule() -> None:
    class Cut(type(build("normal", image_task()))):  # type: ignore[misc]
        def stages(self) -> list[Stage]:
            return [Stage("early", epochs=0.25, begin=0), Stage("own", epochs=2), Stage("late", begin=0.25)]

    task = image_task()
    loop = image_loop("normal", task, epochs=8, schedule=Schedule("step", (1, 5), gamma=0.5), lr=0.5)
    loop.denoiser = Cut(task)
    loop.stages = loop.denoiser.stages()
    loop._learnable = {key for key, _ in loop.denoiser.named_parameters()}
    rates = [(row["stage"], row["lr"]) for row in loop.run()]
    assert rates[:4] == [("early", 0.5), ("early", 0.25), ("own", 0.5), ("own", 0.25)]
    assert rates[4:] == [("late", 0.25)] * 3 + [("late", 0.125)] * 3


@pytest.mark.parametrize(
    ("stage", "span"),
    [
        (Stage(), Span(12, 0, 12)),
        (Stage(epochs=5), Span(5, 0, 5)),
        (Stage(epochs=0.25), Span(3, 0, 3)),
        (Stage(epochs=0.01), Span(1, 0, 1)),
        (Stage(begin=0, epochs=0.25), Span(3, 0, 12)),
        (Stage(begin=0.25), Span(9, 3, 12)),
        (Stage(begin=4, epochs=2), Span(2, 4, 12)),
    ],
)
def test_where_a_stage_lies_in_a_run_of_twelve_epochs(stage: Stage, span: Span) -> None:
    assert stage.span(12) == span


def test_a_share_to_begin_at_leaves_one_epoch() -> None:
    assert Stage(begin=0.9).span(1) == Span(1, 0, 1)
    assert Stage(begin=0.99).span(3) == Span(1, 2, 3)


def test_a_stage_after_the_end_of_the_run_is_refused_before_training() -> None:
    class Late(type(build("normal", image_task()))):  # type: ignore[misc]
        def stages(self) -> list[Stage]:
            return [Stage("late", begin=3)]

    task = image_task()
    with pytest.raises(UserError, match="'late' begins after 3 epochs and the run has 3"):
        Loop(Late(task), task, LoopConfig(epochs=3, selector="last"))


# Averages


def test_the_average_is_a_plain_loop_and_comes_and_goes() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averaging = Averaging({"m": module}, 0.5)
    mean = {key: value.clone() for key, value in module.state_dict().items()}
    for step in range(4):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        module(torch.randn(5, 2))
        averaging.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            mean[key] = decay * mean[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    own = {key: value.clone() for key, value in module.state_dict().items()}
    with averaging.in_place():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, mean[key])
    assert same(dict(module.state_dict()), own)
    averaging.settle()
    torch.testing.assert_close(module.state_dict()["0.weight"], mean["0.weight"])


def test_averaged_weights_are_validated_kept_and_resumed(tmp_path: Path) -> None:
    plain = image_loop("normal", image_task(dropout=0.3), selector="last")
    plain.run()
    whole = image_loop("normal", image_task(dropout=0.3), average=0.9, selector="last")
    whole.run()
    assert not same(weights(plain), weights(whole))
    path = tmp_path / "c.pt"
    cut = image_loop(
        "normal", image_task(dropout=0.3), average=0.9, selector="last", checkpoint_path=path, observer=Stop(6)
    )
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = image_loop("normal", image_task(dropout=0.3), average=0.9, selector="last", checkpoint_path=path)
    assert rest.resume()
    rest.run()
    assert same(weights(whole), weights(rest))


def test_validation_sees_the_average_and_training_goes_on_without_it() -> None:
    seen: list[dict[str, torch.Tensor]] = []
    loop = image_loop("normal", image_task(), average=0.9)
    inner = loop.validate
    assert inner is not None

    def look(score: Any, wanted: set[str]) -> dict[str, float]:
        seen.append(weights(loop))
        return inner(score, wanted)

    loop.validate = look
    loop.run()
    plain = image_loop("normal", image_task(), selector="last")
    plain.run()
    assert loop._averaging is None
    assert same(loop.last_weights["target"], {k.removeprefix("target."): v for k, v in seen[-1].items()})
    assert not same(seen[-1], weights(plain))
