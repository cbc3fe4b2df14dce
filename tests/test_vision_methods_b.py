"""The second half of the vision methods: every formula against a plain loop in float64, and what each does to a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from recdenoise.denoisers import Clock, Denoiser, Stage
from recdenoise.errors import UserError
from recdenoise.observer import Observer
from recdenoise.schedules import Schedule, moment
from recdenoise.task import Batch
from tests.toy_images import build, image_loop, image_task, network
from vision.methods import beta_mixture, transition
from vision.methods.class_balance import balance_loss
from vision.methods.dmi import determinant_loss
from vision.methods.joint_optim import divergence_from_labels, entropy
from vision.methods.noise_adaptation import FLOOR, Channel, channel_loss, soft_confusion
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


# Transition matrices: Forward, T-Revision


def matrix(seed: int = 5, classes: int = C) -> Tensor:
    return torch.softmax(draw(seed, classes, classes).detach(), 1)


def test_forward_loss() -> None:
    logits, label, t = draw(1, N, C), labels(), matrix()
    loop = []
    for row, y in zip(logits.tolist(), label.tolist(), strict=True):
        p = softmax(row)
        loop.append(-math.log(sum(p[i] * float(t[i, y]) for i in range(C))))
    close(transition.forward_loss(logits, label, t), loop)


def test_forward_loss_of_no_noise_is_cross_entropy_and_finite() -> None:
    logits = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    label = torch.tensor([0, 0])
    found = transition.forward_loss(logits, label, torch.eye(2))
    assert found[0] == 0
    assert 80 < found[1] < 90  # -log of the smallest positive float: a given zero is never certain
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    close(
        transition.forward_loss(draw(1, N, C), labels(), torch.eye(C).double()),
        F.cross_entropy(draw(1, N, C), labels(), reduction="none").detach(),
    )


@pytest.mark.parametrize("through_weight", [False, True])
def test_reweighted_loss_and_its_gradient_to_the_matrix(through_weight: bool) -> None:
    logits, label, t = draw(1, N, C), labels(), matrix().requires_grad_()
    loop = []
    slope = torch.zeros(C, C, dtype=torch.float64)
    for row, y in zip(logits.tolist(), label.tolist(), strict=True):
        p = softmax(row)
        observed = sum(p[i] * t[i, y].item() for i in range(C))
        loop.append(p[y] / observed * -math.log(p[y]))
        for i in range(C):  # d/dT[i, y] of p_y / (T^t p)_y
            slope[i, y] += math.log(p[y]) * p[y] * p[i] / observed**2
    found = transition.reweighted_loss(logits, label, t, through_weight)
    close(found, loop)
    (gradient,) = torch.autograd.grad(found.sum(), t, allow_unused=True)
    if through_weight:
        close(gradient, slope)
    else:
        assert gradient is None


@pytest.mark.parametrize("loss", ["forward", "reweight"])
def test_the_zeros_of_a_given_matrix_can_be_revised(loss: str) -> None:
    """As much as an entry beside zero, which a difference of losses confirms."""
    logits, label = draw(1, N, C).detach(), labels()
    pairflip = torch.eye(C, dtype=torch.float64) * 0.7 + torch.eye(C, dtype=torch.float64).roll(1, 1) * 0.3

    def value(t: Tensor) -> Tensor:
        if loss == "forward":
            return transition.forward_loss(logits, label, t).mean()
        return transition.reweighted_loss(logits, label, t, through_weight=True).mean()

    given = pairflip.requires_grad_()
    (slope,) = torch.autograd.grad(value(given), given)
    for i in range(C):
        for j in range(C):
            moved = pairflip.detach().clone()
            moved[i, j] += 1e-7
            assert slope[i, j].item() == pytest.approx((value(moved) - value(given)).item() / 1e-7, rel=1e-3, abs=1e-6)


def test_importance_is_bounded_where_a_revised_entry_falls_below_zero() -> None:
    t = torch.tensor([[0.9, 0.1], [-0.2, 0.8]], dtype=torch.float64)
    logits = torch.tensor([[-1.0, 8.0]], dtype=torch.float64)
    close(transition.importance(logits, torch.tensor([0]), t), [1 / 0.9])


@pytest.mark.parametrize("scale", [30.0, 100.0, 1e4])
def test_importance_of_a_sure_network_has_a_finite_gradient(scale: float) -> None:
    """In float32: the networks that a transition is read from give a doubted label far less than 1e-19."""
    for name, t in {
        "little noise": torch.eye(C) * 0.97 + 0.01,
        "none": torch.eye(C),
        "all": torch.eye(C).roll(1, 1),
    }.items():
        t.requires_grad_()
        logits = draw(5, 40, C, scale=scale).detach().float().requires_grad_()
        loss = transition.reweighted_loss(logits, labels(n=40), t, through_weight=True)
        gradients = torch.autograd.grad(loss.mean(), [logits, t])
        assert loss.isfinite().all(), name
        assert all(g.isfinite().all() for g in gradients), name


@pytest.mark.parametrize(("n", "percentile"), [(40, 97.0), (101, 97.0), (50, 100.0), (3, 97.0), (30, 50.0)])
def test_anchors_are_the_images_below_the_percentile(n: int, percentile: float) -> None:
    """numpy's percentile with the higher neighbour, as the published code takes it, then the largest one below."""
    probability = torch.softmax(draw(n, n, C).detach(), 1)
    found = transition.anchor_transition(probability, percentile)
    array = probability.numpy()
    for i in range(C):
        column = array[:, i]
        if percentile < 100:
            column = column.copy()
            column[column >= np.percentile(column, percentile, method="higher")] = 0.0
        close(found[i], array[int(column.argmax())])


def test_anchors_of_predictions_that_are_all_alike() -> None:
    close(transition.anchor_transition(torch.full((20, C), 1 / C, dtype=torch.float64)), torch.full((C, C), 1 / C))


def test_anchors_find_the_transition_of_a_network_that_knows_it() -> None:
    """The noisy posterior of images of known classes is a row of T."""
    t = 0.6 * torch.eye(C, dtype=torch.float64) + 0.4 * matrix(9)
    classes = torch.arange(400) % C
    clean = F.one_hot(classes, C).double() * 0.999 + 0.001 / C
    # A little less certain from image to image, so that ranks exist.
    clean = torch.lerp(clean, torch.full_like(clean, 1 / C), (torch.arange(400) / 4e5)[:, None].double())
    found = transition.anchor_transition(clean @ t)
    assert (found - t).abs().max() < 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1, 0], [0, 1]], "has 2 rows and columns; there are 3 classes"),
        ([[1, 0], [0, 1], [0, 1]], r"shape \(3, 2\); it must be square"),
        ([[1, 0, 0], [0, 1, 0], [0.5, 0, 0.1]], "Row 2 .* sums to 0.6"),
        ([[1, 0, 0], [0, 1, 0], [-1, 1, 1]], "must be zero or more"),
        ([[1, 0, 0], [0, 1, 0], ["a", 1, 1]], "no table of numbers"),
        ([[1, 0, 0], [0, 1]], "no table of numbers"),
        ("nowhere.npy", "nowhere.npy cannot be read .*; it must be a .npy file"),
    ],
)
def test_a_wrong_transition_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("forward", image_task(), {"transition": given})


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".txt"])
def test_a_transition_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    path, t = tmp_path / f"t{suffix}", matrix(4, 3) * 1.0003
    if suffix == ".npy":
        np.save(path, t.numpy())
    else:
        np.savetxt(path, t.numpy(), delimiter="," if suffix == ".csv" else " ")
    found = build("forward", image_task(), {"transition": str(path)})
    torch.testing.assert_close(found.get_buffer("transition"), matrix(4, 3).float())
    again = found.read_config(found.config.to_dict())
    assert again == found.config
    path.unlink()
    assert (
        build("forward", image_task(), again.to_dict()).get_buffer("transition").equal(found.get_buffer("transition"))
    )
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no table of numbers"):
        build("forward", image_task(), {"transition": str(path)})


def test_forward_estimates_from_its_plain_network_and_keeps_what_it_was_given() -> None:
    task = image_task()
    loop = image_loop("forward", task)
    loop.run()
    denoiser = loop.denoiser
    probability = torch.softmax(task.scan(lambda x: task.call(denoiser.module("plain"), x)), 1)
    torch.testing.assert_close(denoiser.get_buffer("transition"), transition.anchor_transition(probability))
    given = image_loop("forward", image_task(), {"transition": matrix(4, 3).tolist()})
    given.run()
    torch.testing.assert_close(given.denoiser.get_buffer("transition"), matrix(4, 3).float())
    assert not hasattr(given.denoiser, "plain")


def test_clean_probability_through_a_transition_is_bayes_rule() -> None:
    task = image_task()
    t = matrix(4, 3)
    denoiser = build("forward", task, {"transition": t.tolist()}).double().eval()
    task.augment = lambda images, generator, train: images.double() / 255
    found = denoiser.clean_probability()
    t = denoiser.get_buffer("transition")
    loop = []
    for row, y in zip(task.scan(denoiser.score).tolist(), task.labels.tolist(), strict=True):
        p = softmax(row)
        loop.append(p[y] * float(t[y, y]) / sum(p[i] * float(t[i, y]) for i in range(3)))
    close(found, loop)


def test_the_slack_moves_by_adam_at_its_own_rate() -> None:
    loop = image_loop("t_revision", image_task(), {"revision_epochs": 1})
    loop.run()
    slack = loop.denoiser.get_parameter("slack.delta")
    moved = slack.abs().max()  # one epoch has four steps, and Adam's first steps are of about the learning rate
    assert 1e-6 < moved < 3e-6
    unrevised = image_loop("t_revision", image_task(), {"revision_epochs": 0})
    unrevised.run()
    assert not unrevised.denoiser.get_parameter("slack.delta").any()


def test_t_revision_through_forwards_loss() -> None:
    task = plain_task()
    denoiser = build("t_revision", task, {"loss": "forward", "transition": matrix(4, 3).tolist()}).double()
    train, revise = denoiser.stages()
    batch, clock = first_step(denoiser, task, train)
    wanted = transition.forward_loss(task.call(denoiser.module("target"), batch.inputs), batch.label, matrix(4, 3))
    for stage in (train, revise):
        (update,) = denoiser.step(stage, batch, clock)
        torch.testing.assert_close(update.loss, wanted, rtol=1e-6, atol=1e-6)  # the matrix is kept in float32


# Noise adaptation


@pytest.mark.parametrize("layer", ["simple", "complex"])
def test_channel_loss(layer: str) -> None:
    logits, label, width = draw(1, N, C), labels(), 5
    channel = Channel(C, width if layer == "complex" else 0).double()
    with torch.no_grad():
        channel.bias.copy_(draw(6, C, C))
        if channel.image is not None:
            channel.image.copy_(draw(7, width, C * C))
    embedding = draw(8, N, width)
    loop = []
    for n, (row, y) in enumerate(zip(logits.tolist(), label.tolist(), strict=True)):
        p, total = softmax(row), 0.0
        for i in range(C):
            scores = channel.bias[i].tolist()
            if channel.image is not None:
                for j in range(C):
                    scores[j] += sum((embedding[n, d] * channel.image[d, i * C + j]).item() for d in range(width))
            total += p[i] * softmax(scores)[y]
        loop.append(-math.log(total))
    close(channel_loss(logits, label, channel(embedding if layer == "complex" else None)), loop)


def test_soft_confusion() -> None:
    probability, label = torch.softmax(draw(1, N, C).detach(), 1), labels()
    loop = [
        [
            sum(float(probability[t, i]) for t in range(N) if label[t] == j) / float(probability[:, i].sum())
            for j in range(C)
        ]
        for i in range(C)
    ]
    close(soft_confusion(probability, label), loop)


def test_the_channel_starts_from_the_baselines_confusion() -> None:
    task = image_task()
    loop = image_loop("noise_adaptation", task, {"layer": "simple"})

    class Look(Observer):
        def on_stage(self, stage: Stage, *args: int) -> None:
            if stage.name == "train":
                loop.denoiser.eval()
                p = torch.softmax(task.scan(loop.denoiser.score), 1)
                loop.denoiser.train()
                wanted = soft_confusion(p, task.labels).clamp_min(FLOOR)
                torch.testing.assert_close(loop.denoiser.get_parameter("channel.bias").exp(), wanted)
                self.seen = True

    loop.observer = look = Look()
    loop.run()
    assert look.seen


@pytest.mark.parametrize("layer", ["simple", "complex"])
def test_clean_probability_through_the_channel_is_bayes_rule(layer: str) -> None:
    task = image_task()
    denoiser = build("noise_adaptation", task, {"layer": layer}).double().eval()
    task.augment = lambda images, generator, train: images.double() / 255
    with torch.no_grad():
        for parameter in denoiser.module("channel").parameters():
            parameter.copy_(draw(2, *parameter.shape))
    loop = []
    images = task.augmented(task.fetch(task.source("train"), torch.arange(task.n_rows)), torch.Generator(), False)
    logits, embedding = task.embed(denoiser.module("target"), images)
    channel = denoiser.module("channel")(embedding if layer == "complex" else None).exp()
    for n, y in enumerate(task.labels.tolist()):
        p, q = softmax(logits[n].tolist()), channel if layer == "simple" else channel[n]
        loop.append(p[y] * float(q[y, y]) / sum(p[i] * float(q[i, y]) for i in range(3)))
    close(denoiser.clean_probability(), loop)


# DMI


def determinant(rows: list[list[float]]) -> float:
    """By cofactors."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [[row[:j] + row[j + 1 :] for row in rows[1:]] for j in range(len(rows))]
    return sum((-1) ** j * rows[0][j] * determinant(minor) for j, minor in enumerate(minors))


@pytest.mark.parametrize("scaled", [False, True])
def test_determinant_loss(scaled: bool) -> None:
    n = 30
    logits, label = draw(1, n, C), labels(n=n)
    joint = [[0.0] * C for _ in range(C)]
    for row, y in zip(logits.tolist(), label.tolist(), strict=True):
        for c, p in enumerate(softmax(row)):
            joint[c][y] += p / n * (C if scaled else 1)
    loop = -math.log(abs(determinant(joint)) + 0.001)
    close(determinant_loss(logits, label, scaled=scaled), loop)


def test_determinant_loss_with_a_class_missing_is_flat_and_finite() -> None:
    logits, label = draw(1, N, C), torch.zeros(N, dtype=torch.int64)
    loss = determinant_loss(logits, label)
    close(loss, -math.log(0.001))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


def test_noise_scales_the_determinant_of_every_classifier_alike() -> None:
    """det(U T) = det U det T: what the method rests on, for labels drawn in the shares that T says."""
    t = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5], [0.25, 0.0, 0.75]], dtype=torch.float64)
    clean, noisy = [], []
    for i in range(3):
        for j in range(3):
            clean += [i] * int(4 * t[i, j])
            noisy += [j] * int(4 * t[i, j])
    for seed in (1, 2):
        logits = draw(seed, 3, 3)[clean]  # one prediction for each class
        before = torch.exp(-determinant_loss(logits, torch.tensor(clean), 1e-300))
        after = torch.exp(-determinant_loss(logits, torch.tensor(noisy), 1e-300))
        close(after / before, torch.linalg.det(t))


def test_dmi_goes_on_from_the_baseline_at_its_own_rate() -> None:
    loop = image_loop("dmi", image_task())
    baseline, train = loop.denoiser.stages()
    assert (train.lr, train.reset, baseline.lr) == (1e-6, (), None)
    assert loop.denoiser.optimizers(train)["target"].algorithm == "sgd"


# Joint-Optim


def test_balance_loss() -> None:
    logits, prior = draw(1, N, C), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rows = [softmax(row) for row in logits.tolist()]
    mean = [sum(row[c] for row in rows) / N for c in range(C)]
    wanted = sum(float(p) * math.log(float(p) / m) for p, m in zip(prior, mean, strict=True))
    close(balance_loss(logits, prior), wanted)
    assert balance_loss(torch.tensor([[90.0, 0.0], [90.0, 0.0]]), torch.tensor([0.5, 0.5])) > 40
    assert balance_loss(torch.zeros(4, 2), torch.tensor([0.0, 1.0])).isfinite()


def test_divergence_from_labels_and_entropy() -> None:
    logits, soft = draw(1, N, C), torch.softmax(draw(2, N, C).detach(), 1)
    soft[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    divergence, spread = [], []
    for row, y in zip(logits.tolist(), soft.tolist(), strict=True):
        s = softmax(row)
        divergence.append(sum(a * math.log(a / b) for a, b in zip(y, s, strict=True) if a > 0))
        spread.append(-sum(a * math.log(a) for a in s))
    close(divergence_from_labels(logits, soft), divergence)
    close(entropy(logits), spread)


def test_joint_optims_loss_adds_its_three_terms() -> None:
    task = plain_task()
    denoiser = build("joint_optim", task, {"alpha": 1.2, "beta": 0.8, "prior": "observed"}).double()
    stage = denoiser.stages()[0]
    batch, clock = first_step(denoiser, task, stage)
    (update,) = denoiser.step(stage, batch, clock)
    logits = task.call(denoiser.module("target"), batch.inputs)
    shares = [float((task.labels == c).double().mean()) for c in range(3)]
    rows = [softmax(row) for row in logits.tolist()]
    mean = [sum(row[c] for row in rows) / len(rows) for c in range(3)]
    balance = sum(p * math.log(p / m) for p, m in zip(shares, mean, strict=True))
    loop = [
        -math.log(row[int(y.argmax())]) + 1.2 * balance - 0.8 * sum(s * math.log(s) for s in row)
        for row, y in zip(rows, batch.label, strict=True)
    ]
    torch.testing.assert_close(update.loss.tolist(), loop, rtol=1e-6, atol=1e-6)  # shares are kept in float32


def test_labels_are_the_mean_of_the_last_predictions() -> None:
    """From the epoch that was asked for; a row that an epoch left out keeps what is in that epoch's place."""
    task = image_task()
    denoiser = build("joint_optim", task, {"memory": 2, "relabel_from": 0.5})
    stage, train = denoiser.stages()
    observed = denoiser.get_buffer("found").clone()
    places: list[dict[int, Tensor]] = [{}, {}]
    for epoch in range(4):
        denoiser.begin_epoch(stage, epoch)
        found = denoiser.get_buffer("found")
        if epoch < 2:
            assert torch.equal(found, observed)
        else:
            check_means(found, observed, places)
        (sweep,) = denoiser.passes(stage, epoch)
        for step, batch in enumerate(task.loader(sweep, (0, epoch, 0)).batches()):
            assert torch.equal(batch.label, found[batch.index])
            rows = torch.softmax(task.call(denoiser.module("target"), batch.inputs), 1).detach()
            list(denoiser.step(stage, batch, Clock(step, 16, epoch, 4, {"target": 0.1})))
            places[epoch % 2] |= dict(zip(batch.index.tolist(), rows, strict=True))
        with torch.no_grad():  # another network in each epoch
            for parameter in denoiser.module("target").parameters():
                parameter.mul_(1.1)
    denoiser.begin_stage(train)
    check_means(denoiser.get_buffer("found"), observed, places)


def check_means(found: Tensor, observed: Tensor, places: list[dict[int, Tensor]]) -> None:
    for row in range(len(found)):
        rows = [place[row] for place in places if row in place]
        if rows:  # batch norm sees the same batch twice, so that the two forwards agree
            torch.testing.assert_close(found[row], sum(rows) / len(rows))
    assert not torch.equal(found, observed)


def test_joint_optim_may_find_labels_at_a_rate_of_its_own() -> None:
    rows = image_loop(
        "joint_optim", image_task(), {"label_lr": 0.5}, epochs=1, lr=0.02, schedule=Schedule("step", (3,))
    ).run()
    assert [(row["stage"], row["lr"]) for row in rows] == [("labels", 0.5), ("train", 0.02)]
    with pytest.raises(UserError, match="label_lr"):
        build("joint_optim", image_task(), {"label_lr": 0})


def test_the_rate_may_stay_high_while_labels_are_found() -> None:
    """And fall for the new network alone, as in the paper."""
    falling = Schedule("step", milestones=(0.5,))
    for kind, rates in {"run": [1, 0.1, 1, 0.1], "constant": [1, 1, 1, 0.1]}.items():
        loop = image_loop("joint_optim", image_task(), {"label_schedule": kind}, epochs=2, lr=0.02, schedule=falling)
        assert [row["lr"] / 0.02 for row in loop.run()] == pytest.approx(rates)


def test_hard_labels_are_classes() -> None:
    loop = image_loop("joint_optim", image_task(), {"labels": "hard"})
    loop.run()
    found = loop.denoiser.get_buffer("found")
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert (found.sum(1) == 1).all()


@pytest.mark.parametrize(("value", "epochs", "epoch"), [(0.35, 200, 70), (70, 200, 70), (0.35, 1, 1), (1, 10, 1)])
def test_moments(value: float, epochs: int, epoch: int) -> None:
    assert moment(value, epochs) == epoch


# M-correction


def test_beta_densities_are_scipys() -> None:
    x = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    alpha, beta = torch.tensor([0.7, 5.0]).double(), torch.tensor([3.0, 1.5]).double()
    wanted = np.stack([stats.beta.logpdf(x.numpy(), float(a), float(b)) for a, b in zip(alpha, beta, strict=True)], 1)
    close(beta_mixture.log_density(x, alpha, beta), wanted)


def test_one_round_of_em() -> None:
    """Responsibilities and weighted moments, one example after the other."""
    x = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, beta, weight = (torch.tensor(v).double() for v in ([1.0, 2.0], [2.0, 1.0], [0.5, 0.5]))
    shares = []
    for value in x.tolist():
        parts = [w * stats.beta.pdf(value, a, b) for a, b, w in ((1, 2, 0.5), (2, 1, 0.5))]
        shares.append([part / sum(parts) for part in parts])
    share = beta_mixture.responsibilities(x, alpha, beta, weight)
    close(share, shares)
    found = beta_mixture.by_moments(x, share)
    for k in range(2):
        total = sum(row[k] for row in shares)
        mean = sum(row[k] * v for row, v in zip(shares, x.tolist(), strict=True)) / total
        variance = sum(row[k] * (v - mean) ** 2 for row, v in zip(shares, x.tolist(), strict=True)) / total
        a = mean * (mean * (1 - mean) / variance - 1)
        close(torch.stack([part[k] for part in found]), [a, a * (1 - mean) / mean, total / 20])


def two_betas(n: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses of which ``share`` are large, and which ones."""
    random = np.random.default_rng(seed)
    wrong = random.random(n) < share
    place = np.where(wrong, random.beta(8, 3, n), random.beta(2, 10, n))
    return torch.from_numpy(7 * place + 0.1), torch.from_numpy(wrong)


@pytest.mark.parametrize("share", [0.36, 0.5])
def test_the_mixture_finds_what_the_losses_were_drawn_from(share: float) -> None:
    loss, wrong = two_betas(4000, share)
    mixture = beta_mixture.fit(loss, rounds=50)
    assert abs(float(mixture.weight[1]) - share) < 0.05
    large = mixture.large(loss)
    assert ((large > 0.5) == wrong).double().mean() > 0.97
    assert mixture.mean[0] < mixture.mean[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000), st.floats(0.01, 50), st.booleans())
def test_the_posterior_is_a_probability_that_rises_with_the_loss(n: int, seed: int, scale: float, heavy: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(n, generator=generator) * scale
    if heavy:
        loss = loss**8 * 100
    large = beta_mixture.fit(loss).large(loss)
    assert large.isfinite().all()
    assert ((large >= 0) & (large <= 1)).all()
    ordered = large[loss.argsort()]
    assert (ordered[-1] >= ordered[0]).item()


def test_doubt_rises_with_the_loss_at_both_ends_unless_asked_otherwise() -> None:
    """With few wrong labels, the fit's second component is wide, and rises again towards the smallest losses."""
    loss, _ = two_betas(4000, 0.1)
    places = torch.linspace(float(loss.min()), float(loss.max()), 200)
    steps = beta_mixture.fit(loss).large(places).diff()
    assert (steps >= -1e-3).all()  # a hundred places are looked at
    published = beta_mixture.fit(loss, both_tails=False).large(places)
    assert published[0] > published.min() + 0.1
    assert published[-1] == published.max()


def test_losses_that_are_all_alike_are_fitted_without_harm() -> None:
    large = beta_mixture.fit(torch.full((50,), 2.3)).large(torch.full((50,), 2.3))
    assert large.isfinite().all()


@pytest.mark.parametrize("bootstrap", ["hard", "soft"])
def test_m_corrections_loss(bootstrap: str) -> None:
    """delta l(p) + (1 - delta) l(q), each with its own corrected label, plus the pull to equal shares."""
    task = plain_task()
    denoiser = build("m_correction", task, {"bootstrap": bootstrap}).double()
    (stage,) = denoiser.stages()
    batch, clock = first_step(denoiser, task, stage, epoch=1)
    denoiser.get_buffer("doubt").copy_(torch.rand(task.n_rows, generator=torch.Generator().manual_seed(2)))
    target, doubt = denoiser.module("target"), denoiser.get_buffer("doubt")[batch.index].tolist()
    torch.manual_seed(3)
    (update,) = denoiser.step(stage, batch, clock)
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(32.0, 32.0).sample())
    partners = torch.randperm(len(batch.label)).tolist()
    predictions = [softmax(row) for row in task.call(target, batch.inputs).tolist()]
    mixed = torch.stack(
        [share * x + (1 - share) * batch.inputs[q] for x, q in zip(batch.inputs, partners, strict=True)]
    )
    rows = [softmax(row) for row in task.call(target, mixed).tolist()]
    mean = [sum(row[c] for row in rows) / len(rows) for c in range(3)]
    pull = sum(math.log(1 / 3 / m) / 3 for m in mean)

    def part(example: int, row: list[float]) -> float:
        total, w = 0.0, doubt[example]
        for c in range(3):
            z = predictions[example][c]
            if bootstrap == "hard":
                z = float(c == max(range(3), key=lambda k: predictions[example][k]))
            total -= ((1 - w) * float(batch.label[example] == c) + w * z) * math.log(row[c])
        return total

    loop = [share * part(i, rows[i]) + (1 - share) * part(q, rows[i]) + pull for i, q in enumerate(partners)]
    torch.testing.assert_close(update.loss.tolist(), loop, rtol=1e-6, atol=1e-6)  # doubts are kept in float32


def test_doubts_begin_after_the_warmup_and_find_the_noise() -> None:
    task = image_task(n=132)
    loop = image_loop("m_correction", task, {"warmup": 0.5}, epochs=12)
    rows = loop.run()
    assert [row["doubt"] == 0 for row in rows] == [True] * 6 + [False] * 6
    doubt = loop.denoiser.get_buffer("doubt")
    wrong = task.labels != task.source("train").true_labels  # type: ignore[attr-defined]
    assert doubt[wrong].mean() > doubt[~wrong].mean() + 0.1
