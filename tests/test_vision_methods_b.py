"""The second half of the vision methods: every formula against a plain loop in float64, and what each does to a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise.denoisers import Clock, Denoiser, Stage
from recdenoise.errors import UserError
from recdenoise.task import Batch
from tests.toy_images import build, image_loop, image_task, network
from vision.task import ImageTask

N, C = 7, 4


def draw(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()


def labels(seed: int = 3, n: int = N, classes: int = C) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    return torch.softmax(torch.tensor(row, dtype=torch.float64), 0).tolist()


def close(found: Tensor, loop: Any) -> None:
    torch.testing.assert_close(found.detach(), torch.as_tensor(loop, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def double_batch(batch: Batch) -> Batch:
    streams = {name: double_batch(stream) for name, stream in batch.streams.items()}
    return dataclasses.replace(batch, inputs=batch.inputs.double(), streams=streams)


def first_step(denoiser: Denoiser, task: ImageTask, stage: Stage, epoch: int = 0) -> tuple[Batch, Clock]:
    """The first batch of an epoch, in float64, and a clock for it."""
    (sweep,) = denoiser.passes(stage, epoch)
    batch = double_batch(next(iter(task.loader(sweep, (0, epoch, 0)).batches())))
    rates = dict.fromkeys(denoiser.optimizers(stage), 0.1)
    return batch, Clock(4 * epoch, 12, epoch, 3, rates)


def plain_task(**options: Any) -> ImageTask:
    """Networks without norm layers: what they give for an image does not depend on the others."""
    return image_task(new_model=lambda _: network(norm=False), **options)


# MW-Net


def test_mw_net_looks_one_step_ahead() -> None:
    """Both updates of a step against per-example gradients, one example after the other."""
    task = plain_task()
    denoiser = build("mw_net", task, {"clean_batch": 5}).double()
    (stage,) = denoiser.stages()
    batch, clock = first_step(denoiser, task, stage)
    clean, rate = batch.streams["clean"], clock.rates["target"]
    assert len(clean.label) == 5
    target, weigher = denoiser.module("target"), denoiser.module("weigher")
    parameters = dict(target.named_parameters())

    gradients, losses = [], []
    for image, label in zip(batch.inputs, batch.label, strict=True):
        loss = F.cross_entropy(target(image[None]), label[None])
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(parameters.values())))
    weights = [weigher(loss[None]).item() for loss in losses]
    n = len(losses)
    ahead = {
        name: p.detach() - rate / n * sum(w * g[j] for w, g in zip(weights, gradients, strict=True))
        for j, (name, p) in enumerate(parameters.items())
    }
    ahead = {name: p.requires_grad_() for name, p in ahead.items()}
    clean_loss = F.cross_entropy(torch.func.functional_call(target, ahead, (clean.inputs,)), clean.label)
    pull = torch.autograd.grad(clean_loss, list(ahead.values()))
    slopes = [-rate / n * float(sum((a * b).sum() for a, b in zip(g, pull, strict=True))) for g in gradients]
    wanted: list[Tensor] = [torch.zeros_like(p) for p in weigher.parameters()]
    for slope, loss in zip(slopes, losses, strict=True):
        for total, gradient in zip(wanted, torch.autograd.grad(weigher(loss[None]), weigher.parameters()), strict=True):
            total += slope * gradient

    updates = denoiser.step(stage, batch, clock)
    first = next(updates)
    assert first.optimizer == "weigher"
    value = first.reduce()
    close(value, clean_loss.detach())
    value.backward()
    for parameter, gradient in zip(weigher.parameters(), wanted, strict=True):
        close(parameter.grad, gradient)
    assert all(p.grad is None for p in target.parameters())  # the look ahead leaves the classifier alone
    with torch.no_grad():
        for parameter in weigher.parameters():
            parameter -= 0.5 * parameter.grad
    second = next(updates)
    close(second.loss, losses)
    close(second.weight, torch.cat([weigher(loss[None]) for loss in losses]))
    second.reduce().backward()
    for j, parameter in enumerate(target.parameters()):
        close(parameter.grad, sum(w * g[j] for w, g in zip(second.weight, gradients, strict=True)) / n)


def test_mw_net_keeps_clean_images_out_of_the_norm_layers() -> None:
    """Running statistics move by one look at the training batch, not by the looks ahead."""
    task = image_task()
    denoiser, plain = build("mw_net", task).train(), build("normal", task).train()
    (stage,) = denoiser.stages()
    (sweep,) = denoiser.passes(stage, 0)
    batch = next(iter(task.loader(sweep, (0, 0, 0)).batches()))
    for _ in denoiser.step(stage, batch, Clock(0, 4, 0, 1, {"target": 0.1})):
        pass
    task.call(plain.module("target"), batch.inputs)
    pairs = zip(denoiser.module("target").buffers(), plain.module("target").buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_mw_net_needs_a_clean_set() -> None:
    with pytest.raises(UserError, match="needs a 'clean' data set"):
        image_loop("mw_net", image_task(sources={})).run()
