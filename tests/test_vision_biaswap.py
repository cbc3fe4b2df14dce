"""BiaSwap and its parts: the split, activation maps, patches, the autoencoder, and every loss by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recdenoise.denoisers import Clock, Denoiser, Stage
from recdenoise.errors import TrainingError, UserError
from recdenoise.task import Batch
from tests.toy_images import build, cross_entropies, image_loop, image_task, network
from vision import networks
from vision.methods.activation_map import activation_maps, last_map, places
from vision.methods.biaswap import bias_score
from vision.methods.swapping_autoencoder import Modulated, SwappingAutoencoder, crop, sizes_of
from vision.task import ImageTask


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The split


def test_the_score_by_hand() -> None:
    logits, label = draw(1, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = []
    for row, y in zip(logits, label.tolist(), strict=True):
        p = [math.exp(x) / sum(math.exp(z) for z in row.tolist()) for x in row.tolist()]
        expected.append(abs((p.index(max(p)) == y) - max(p)))
    torch.testing.assert_close(bias_score(logits, label), torch.tensor(expected).double())


def test_rows_are_split_at_the_mean_of_the_biased_networks_score_and_the_split_is_told() -> None:
    task = image_task()
    loop = image_loop("biaswap", task)
    loop.run()
    method = loop.denoiser.eval()
    # The biased network does not move after its stage: its scores can be had again.
    score = bias_score(task.scan(lambda inputs: task.call(method.biased, inputs)), task.labels)
    torch.testing.assert_close(method.scores, score)
    assert torch.equal(method.conflicting, score > score.mean())
    known = task.labels != task.source("train").attributes["bias"]
    hits = int((known & method.conflicting).sum())
    split = method.findings()["split"]
    assert split["precision"] == pytest.approx(hits / int(method.conflicting.sum()))
    assert split["recall"] == pytest.approx(hits / int(known.sum()))
    assert split["conflicting"] == pytest.approx(float(method.conflicting.float().mean()))
    task.sources["train"] = dataclasses.replace(task.sources["train"], attributes={})  # type: ignore[type-var]
    assert set(method.findings()["split"]) == {"conflicting", "mean_score"}


def test_a_network_to_which_all_rows_are_alike_ends_the_run_in_a_sentence() -> None:
    method = build("biaswap", image_task()).eval()
    for parameter in method.biased.parameters():
        parameter.data.zero_()
    method.task.labels.fill_(0)
    with pytest.raises(TrainingError, match="same score"):
        method.begin_stage(method.stages()[1])


def test_each_stage_goes_over_its_rows_in_whole_batches() -> None:
    task = image_task()
    method = build("biaswap", task)
    biased, swap, train = method.stages()
    assert [biased.epochs, swap.epochs, train.epochs] == [2, 1, None]
    method.conflicting[:5] = True
    (first,) = method.passes(biased, 0)
    assert first.rows is None
    (second,) = method.passes(swap, 0)
    assert second.rows is not None
    assert torch.equal(second.rows, torch.arange(5, 66))
    contrary = second.streams["contrary"].rows
    assert contrary is not None
    assert set(contrary.tolist()) == set(range(5))
    assert len(contrary) == 20  # a batch is 16
    (third,) = method.passes(train, 0)
    assert third.rows is None
    assert torch.equal(third.streams["contrary"].rows, contrary)
    batch = next(iter(task.loader(third, (2, 0, 0)).batches()))
    assert {len(stream.label) for stream in batch.streams.values()} == {16}


# Activation maps


def test_where_a_global_mean_and_a_linear_follow_the_map_is_the_printed_one() -> None:
    model = networks.build("resnet20", 4, 3).double().eval()
    images, classes = draw(2, 3, 3, 16, 16), torch.tensor([0, 3, 1])
    assert last_map(model, images) == "layer3"
    kept: list[Tensor] = []
    handle = model.layer3.register_forward_hook(lambda *parts: kept.append(parts[2].detach()))
    logits = model(images)
    handle.remove()
    expected, weight = torch.zeros(3, 4, 4), model.fc.weight.detach()
    for i, k in enumerate(classes.tolist()):
        for y in range(4):
            for x in range(4):
                terms = [float(weight[k, c] * kept[0][i, c, y, x]) / 16 for c in range(64)]
                expected[i, y, x] = sum(terms)
    found = activation_maps(model, "layer3", images, classes)
    torch.testing.assert_close(found, expected)
    sums = found.sum((1, 2)).double() + model.fc.bias[classes]
    torch.testing.assert_close(sums, logits.gather(1, classes[:, None]).squeeze(1), rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_a_network_of_linears_has_its_pixels_for_a_map() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).double()
    images = draw(3, 2, 2, 3, 3)
    assert last_map(model, images) is None
    found = activation_maps(model, None, images, torch.tensor([2, 0]))
    weight = model[1].weight[[2, 0]].detach().unflatten(1, (2, 3, 3))
    torch.testing.assert_close(found, (weight * images).sum(1).float())


def test_a_map_whose_reader_works_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3)).double()
    images, classes = draw(4, 2, 1, 6, 6), torch.tensor([0, 1])
    expected = activation_maps(model, "1", images, classes)
    torch.testing.assert_close(activation_maps(model, "0", images, classes).clamp_min(0), expected.clamp_min(0))


def test_places_are_drawn_by_the_softmax_of_the_map() -> None:
    maps = torch.tensor([[[0.0, 2.0], [1.0, -1.0]]])
    draws = torch.rand(1, 20_000, 3, generator=torch.Generator().manual_seed(1))
    points = places(maps, draws)[0]
    share = torch.stack([((points[:, 0] > 0) == x) & ((points[:, 1] > 0) == y) for y in (0, 1) for x in (0, 1)])
    wanted = torch.softmax(maps.flatten(), 0)
    torch.testing.assert_close(share.double().mean(1), wanted.double(), atol=0.01, rtol=0)
    assert points.abs().max() <= 1
    right = points[(points[:, 0] > 0) & (points[:, 1] <= 0)]
    assert float(right[:, 0].mean()) == pytest.approx(0.5, abs=0.01)  # evenly within the place


def test_patches_by_hand() -> None:
    images = torch.arange(2 * 8 * 8, dtype=torch.float64).reshape(2, 1, 8, 8)
    points = torch.tensor([[[-0.25, 0.0], [5.0, -5.0]], [[0.5, 0.5], [0.0, 0.0]]]).double()
    shares = torch.full((2, 2), 0.5).double()
    found = crop(images, points, shares, 4)
    corners = {(0, 0): (2, 1), (0, 1): (0, 4), (1, 0): (4, 4), (1, 1): (2, 2)}  # row and column of the upper left pixel
    for (image, patch), (top, left) in corners.items():
        torch.testing.assert_close(found[image, patch], images[image, :, top : top + 4, left : left + 4])


def test_gradients_pass_through_a_patch_to_its_image_alone() -> None:
    images = draw(5, 2, 1, 8, 8).requires_grad_()
    crop(images, torch.zeros(2, 1, 2), torch.full((2, 1), 0.25), 4)[0].sum().backward()
    assert images.grad is not None
    assert images.grad[0, 0, 3:5, 3:5].all()
    assert not images.grad[1].any()
    assert not images.grad[0, 0, :2].any()


# The autoencoder


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (28, 28)])
def test_an_image_keeps_its_size(size: tuple[int, int]) -> None:
    model = SwappingAutoencoder(size, 3, 4, 2, 5, 2)
    content, style = torch.randn(2, 3, 3, *size)
    assert model((content, style, True)).shape == (9, 3, *size)
    structure, texture = model.encoder(content)
    assert structure.shape == (3, 2, *sizes_of(size, 2)[-1])
    torch.testing.assert_close(structure.norm(dim=1), torch.ones(3, *structure.shape[2:]))
    torch.testing.assert_close(texture.norm(dim=1), torch.ones(3))


def test_a_swap_takes_the_structure_of_content_and_the_texture_of_style() -> None:
    model = SwappingAutoencoder((8, 8), 1, 4, 2, 5, 1).double()
    content, style = draw(6, 3, 1, 8, 8), draw(7, 3, 1, 8, 8)
    (a, s), (b, t) = model.encoder(content), model.encoder(style)
    own, other, swapped = model((content, style, True)).chunk(3)
    torch.testing.assert_close(own, model.generator(a, s))
    torch.testing.assert_close(other, model.generator(b, t))
    torch.testing.assert_close(swapped, model.generator(a, t))
    torch.testing.assert_close(model((content, style, False)), swapped)


def test_a_modulated_convolution_by_hand() -> None:
    layer = Modulated(3, 2, 4).double()
    x, code = draw(8, 2, 3, 5, 5), draw(9, 2, 4)
    found = layer(x, code)
    for i in range(2):
        scale = layer.scale(code[i]) + 1
        kernel = layer.weight * scale[None, :, None, None]
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        out = nn.functional.conv2d(x[i : i + 1], kernel, padding=1) + layer.bias[:, None, None]
        torch.testing.assert_close(found[i : i + 1], nn.functional.leaky_relu(out, 0.2))


# The steps


def prepared(**options: Any) -> tuple[ImageTask, Denoiser, Stage]:
    task = image_task(new_model=lambda _: network(norm=False))
    method = build("biaswap", task, options).double()
    method.conflicting[::4] = True
    return task, method, method.stages()[1]


def double(batch: Batch) -> Batch:
    streams = {name: double(stream) for name, stream in batch.streams.items()}
    return dataclasses.replace(batch, inputs=batch.inputs.double(), streams=streams)


def first(task: ImageTask, method: Denoiser, stage: Stage) -> Batch:
    (sweep,) = method.passes(stage, 0)
    return double(next(iter(task.loader(sweep, (1, 0, 0)).batches())))


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


@pytest.mark.parametrize("step", [0, 1])
def test_the_discriminators_loss_and_its_penalty_by_hand(step: int) -> None:
    task, method, stage = prepared(r1=3.0, r1_every=2, lambda_rebuilt=0.5, lambda_swapped=0.25)
    batch = first(task, method, stage)
    update = next(iter(method.step(stage, batch, Clock(step, 8, 0, 1))))
    assert update.optimizer == "discriminator"
    style = batch.streams["contrary"].inputs
    n, real = len(batch.label), torch.cat([batch.inputs, style])
    made = method.autoencoder((batch.inputs, style, True)).detach()
    expected = []
    for image in real:
        one = image[None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(method.discriminator(one).sum(), one)
        penalty = 2 * 3.0 / 2 * float(slope.square().sum()) if step == 0 else 0.0
        expected.append(softplus(-float(method.discriminator(image[None]).detach())) + penalty)
    for i, image in enumerate(made):
        weight = 0.5 if i < 2 * n else 0.25
        expected.append(weight * softplus(float(method.discriminator(image[None]).detach())))
    assert update.groups == (2 * n, 2 * n, n)
    torch.testing.assert_close(update.loss.tolist(), expected, rtol=1e-6, atol=1e-8)


def test_the_autoencoders_loss_by_hand() -> None:
    task, method, stage = prepared(lambda_content=2.0, lambda_rebuilt=0.3, lambda_swapped=0.4, lambda_style=0.0)
    batch = first(task, method, stage)
    *_, update = method.step(stage, batch, Clock(1, 8, 0, 1))
    assert update.optimizer == "autoencoder"
    style = batch.streams["contrary"].inputs
    n, real = len(batch.label), torch.cat([batch.inputs, style])
    made = method.autoencoder((batch.inputs, style, True)).detach()
    expected = []
    for i, image in enumerate(made):
        fooled = softplus(-float(method.discriminator(image[None]).detach()))
        if i < 2 * n:
            error = float((image - real[i]).square().mean())
            expected.append(2.0 * error + 0.3 * fooled)
        else:
            expected.append(0.4 * fooled)
    assert update.groups == (2 * n, n)
    torch.testing.assert_close(update.loss.tolist(), expected, rtol=1e-6, atol=1e-8)


def test_the_patch_discriminator_compares_with_the_mean_of_the_reference_patches() -> None:
    task, method, stage = prepared(patches=3, patch_r1=0.0, r1=0.0)
    cut: list[Tensor] = []
    original = method.patches

    def noted(images: Tensor, label: Tensor) -> Tensor:
        cut.append(original(images, label))
        return cut[-1]

    method.patches = noted
    _, update, last = method.step(stage, first(task, method, stage), Clock(1, 8, 0, 1))
    assert update.optimizer == "patch_discriminator"
    swapped, references, real_patches, fooling_patches = (part.detach() for part in cut)
    net, n = method.patch_discriminator, len(swapped)

    def say(candidate: Tensor, others: Tensor) -> float:
        features = [net.body(patch[None]).mean((2, 3))[0] for patch in (candidate, *others)]
        both = torch.cat([features[0], torch.stack(features[1:]).mean(0)])
        return float(net.judge(both).detach())

    expected, fooling = [], []
    for i in range(n):
        real = [softplus(-say(patch, references[i])) for patch in real_patches[i]]
        false = [softplus(say(patch, references[i])) for patch in swapped[i]]
        expected.append(sum(real) / 3 + sum(false) / 3)
        fooling.append(sum(softplus(-say(patch, references[i])) for patch in fooling_patches[i]) / 3)
    torch.testing.assert_close(update.loss.tolist(), expected, rtol=1e-6, atol=1e-8)
    assert float(last.logs["style"].detach()) == pytest.approx(sum(fooling) / n, rel=1e-6)


def test_each_update_moves_its_own_network() -> None:
    task, method, stage = prepared()
    for update in method.step(stage, first(task, method, stage), Clock(0, 8, 0, 1)):
        method.zero_grad()
        update.reduce().backward()
        reached = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
        assert reached == {update.optimizer}


def test_the_classifier_learns_real_images_and_swapped_ones_with_the_label_of_their_structure() -> None:
    task, method, _ = prepared(lambda_swap=0.5)
    stage = method.stages()[2]
    batch = first(task, method, stage)
    (update,) = method.step(stage, batch, Clock(0, 8, 0, 1))
    content, style = batch.streams["aligned"], batch.streams["contrary"]
    assert not method.conflicting[content.index].any()
    assert method.conflicting[style.index].all()
    swapped = method.autoencoder((content.inputs, style.inputs, False)).detach()
    expected = []
    for weight, images, labels in ((1.0, batch.inputs, batch.label), (0.5, swapped, content.label)):
        for image, label in zip(images, labels.tolist(), strict=True):
            logits = method.target(image[None])[0]
            expected.append(weight * float(-torch.log_softmax(logits.detach(), 0)[label]))
    torch.testing.assert_close(update.loss.tolist(), expected, rtol=1e-6, atol=1e-8)
    update.reduce().backward()
    assert all(p.grad is None for p in method.autoencoder.parameters())


def test_without_swapped_images_nothing_makes_any_and_the_split_is_the_same() -> None:
    """A run that is after the split alone: biased network, split, plain classifier."""
    splits = {}
    for weight in (0.0, 0.5):
        loop = image_loop("biaswap", image_task(), {"lambda_swap": weight})
        loop.run()
        splits[weight] = loop.denoiser
    plain, swapping = splits[0.0], splits[0.5]
    assert [stage.name for stage in plain.stages()] == ["biased", "train"]
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"target", "biased"}
    assert plain.conflicting.any()
    assert torch.equal(plain.conflicting, swapping.conflicting)
    task = plain.task
    batch = next(iter(task.loader(plain.passes(plain.stages()[1], 0)[0], (1, 0, 0)).batches()))
    (update,) = plain.step(plain.stages()[1], batch, Clock(0, 8, 0, 1))
    logits = task.call(plain.target, batch.inputs)
    torch.testing.assert_close(update.loss.tolist(), cross_entropies(logits, batch.label), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cam_class", ["predicted", "label"])
def test_patches_lie_where_the_biased_network_looks(cam_class: str) -> None:
    """A biased network that looks at one corner alone."""
    _, method, _ = prepared(cam_class=cam_class, patches=4, patch_smallest=0.2, patch_largest=0.3)
    method.biased = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    with torch.no_grad():
        method.biased[1].weight.zero_()
        method.biased[1].weight[:, 35] = 1000.0
    images = torch.zeros(2, 1, 6, 6).double()
    images[:, 0, 5, 5] = 1.0
    cut = method.patches(images, torch.tensor([0, 1]))
    assert cut.shape == (2, 4, 1, 4, 4)
    assert (cut.amax((2, 3, 4)) > 0.3).all()


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="patch_largest"):
        build("biaswap", image_task(), {"patch_smallest": 0.5, "patch_largest": 0.4})
    with pytest.raises(UserError, match="lambda_style"):
        build("biaswap", image_task(), {"lambda_style": -1.0})
