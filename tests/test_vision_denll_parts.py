"""DeNLL's modules by themselves: masks, memory and interaction against hand-computed values and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vision
from recdenoise.errors import UserError
from vision import ClassBackgroundMemory, DebiasedInteraction, GaussianLocalization
from vision.heads import head_places, layer_places
from vision.networks.denll import DeNLLNetwork
from vision.networks.interaction import GivenBackground, class_sums
from vision.networks.localization import Cut, box_mask, gaussian_mask, quarter_maxima, spatial_median


def test_the_modules_are_importable_from_the_package() -> None:
    assert {"GaussianLocalization", "ClassBackgroundMemory", "DebiasedInteraction"} <= set(vision.__all__)


# Localisation


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (6, 6), (20, 33)])
def test_the_mask_starts_in_the_middle_with_the_mass_of_the_box(height: int, width: int) -> None:
    module = GaussianLocalization(3)
    images = torch.rand(4, 3, height, width)
    centre, variance = module.locate(images)
    assert torch.equal(centre, torch.tensor([[(height - 1) / 2, (width - 1) / 2]] * 4))
    assert variance.tolist() == pytest.approx([0.5625 * height * width / (2 * math.pi)] * 4)
    mask = module(images)
    assert (mask.shape, mask.dtype) == ((4, 1, height, width), torch.float32)
    mass = 2 * math.pi * variance[0].item()
    assert mass == pytest.approx((0.75**2) * height * width)


def test_a_mask_is_the_printed_gaussian() -> None:
    centre, variance = torch.tensor([[2.0, 3.5], [-1.0, 0.0]]), torch.tensor([4.0, 1.5])
    mask = gaussian_mask(centre, variance, 5, 7)
    for n in range(2):
        for i in range(5):
            for j in range(7):
                far = (i - centre[n, 0]) ** 2 + (j - centre[n, 1]) ** 2
                assert float(mask[n, 0, i, j]) == pytest.approx(math.exp(-far / (2 * variance[n])), rel=1e-5)


def test_centre_and_width_stay_in_their_bounds() -> None:
    module = GaussianLocalization(1)
    nn.init.constant_(module.place.bias, 50.0)
    centre, variance = module.locate(torch.rand(2, 1, 32, 32))
    assert centre.tolist() == [[31.5, 31.5]] * 2
    assert variance.tolist() == pytest.approx([0.5625 * 1024 / (2 * math.pi) * math.exp(2)] * 2)
    nn.init.constant_(module.place.bias, -50.0)
    centre, variance = module.locate(torch.rand(2, 1, 32, 32))
    assert centre.tolist() == [[-0.5, -0.5]] * 2
    assert variance.tolist() == pytest.approx([0.5625 * 1024 / (2 * math.pi) * math.exp(-2)] * 2)
    module.reset_parameters()
    assert not module.place.bias.any()
    assert not module.place.weight.any()


def test_masks_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert GaussianLocalization(1)(torch.rand(2, 1, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (1, 1), (2, 1), (3, 6)])
def test_quarter_maxima_are_adaptive_max_pooling(height: int, width: int) -> None:
    maps = torch.randn(3, 4, height, width)
    assert torch.equal(quarter_maxima(maps), nn.AdaptiveMaxPool2d(2)(maps))


def test_the_box_is_24_of_32_pixels_in_the_middle() -> None:
    mask = box_mask(torch.zeros(1, 3, 32, 32))[0, 0]
    assert mask.sum() == 24 * 24
    assert mask[4:28, 4:28].all()
    assert box_mask(torch.zeros(1, 3, 28, 28)).sum() == 21 * 21


def test_soft_and_box_split_an_image_in_two() -> None:
    images, mask = torch.randn(2, 3, 6, 6), torch.rand(2, 1, 6, 6)
    for mode in ("soft", "box"):
        foreground, background = Cut(mode)(images, mask)  # type: ignore[arg-type]
        torch.testing.assert_close(foreground, images * mask)
        torch.testing.assert_close(background, images * (1 - mask))


def test_eq5_subtracts_the_median_on_the_scale_0_to_1() -> None:
    raw, mask = torch.rand(2, 3, 5, 5), torch.rand(2, 1, 5, 5)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    normalised = (raw - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    foreground, background = Cut("eq5", mean, std)(normalised, mask)
    for n in range(2):
        for c in range(3):
            masked = mask[n, 0] * raw[n, c]
            median = masked.flatten().median()
            torch.testing.assert_close(foreground[n, c], (masked - median).clamp_min(0))
            torch.testing.assert_close(background[n, c], (median - masked).clamp_min(0))


def test_the_median_passes_no_gradient() -> None:
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert not spatial_median(images).requires_grad
    assert torch.equal(spatial_median(images).flatten(), images.detach().flatten(2).median(2).values.flatten())


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(UserError, match="Option 'mask' is 'hard'; it must be one of soft, eq5, box"):
        Cut("hard")  # type: ignore[arg-type]


# Memory


def looped(batches: list[tuple[Tensor, Tensor]], n_classes: int, width: int, momentum: float) -> Tensor:
    mean: dict[int, Tensor] = {}
    for values, labels in batches:
        for c in range(n_classes):
            rows = [values[i] for i in range(len(labels)) if labels[i] == c]
            if not rows:
                continue
            here = sum(rows) / len(rows)
            mean[c] = momentum * mean[c] + (1 - momentum) * here if c in mean else here
    return torch.stack([mean.get(c, torch.zeros(width)) for c in range(n_classes)])


def test_the_vectorised_memory_is_a_loop_over_rows() -> None:
    memory = ClassBackgroundMemory(5, 4, 0.8)
    batches = [(torch.randn(7, 4), torch.randint(-1, 4, (7,))) for _ in range(6)]  # class 4 is never shown
    for values, labels in batches:
        memory.update(values.requires_grad_(), labels)
    torch.testing.assert_close(memory(), looped(batches, 5, 4, 0.8))
    assert memory.seen.tolist() == [True] * 4 + [False]
    assert not memory().requires_grad


def test_first_sight_sets_a_class_and_mixed_images_are_skipped() -> None:
    memory = ClassBackgroundMemory(3, 2)
    memory.update(torch.tensor([[2.0, 0.0], [4.0, 2.0], [9.0, 9.0]]), torch.tensor([1, 1, -1]))
    assert memory().tolist() == [[0, 0], [3, 1], [0, 0]]
    memory.update(torch.tensor([[5.0, 5.0]]), torch.tensor([-1]))
    assert memory().tolist() == [[0, 0], [3, 1], [0, 0]]
    memory.update(torch.tensor([[103.0, 1.0]]), torch.tensor([1]))
    torch.testing.assert_close(memory(), torch.tensor([[0.0, 0.0], [4.0, 1.0], [0.0, 0.0]]))


def test_a_memory_is_rebuilt_from_sums() -> None:
    memory = ClassBackgroundMemory(3, 2)
    memory.update(torch.ones(3, 2), torch.tensor([0, 1, 2]))
    values, labels = torch.randn(10, 2), torch.tensor([0, 2] * 5)
    parts = [class_sums(values[i : i + 4], labels[i : i + 4], 3) for i in (0, 4, 8)]
    memory.rebuild(sum(p[0] for p in parts), sum(p[1] for p in parts))  # type: ignore[arg-type]
    torch.testing.assert_close(memory(), looped([(values, labels)], 3, 2, 0.5))
    assert memory.seen.tolist() == [True, False, True]


# Interaction


def test_the_interaction_is_its_formula_row_by_row() -> None:
    torch.manual_seed(1)
    module, classes = DebiasedInteraction(6, 4), 4
    z_f, z_b, memory = torch.randn(3, 6), torch.randn(3, 6), torch.randn(classes, 6)
    (o1, o2), representation = module(z_f, z_b, memory)
    for n in range(3):
        u1 = module.given(torch.cat([z_f[n], z_b[n]])).relu()
        u2 = torch.zeros(6)
        for mu in memory:
            joint = module.of_foreground.weight @ z_f[n] + module.of_background.weight @ mu + module.of_foreground.bias
            u2 = u2 + joint.relu() / classes
        s = module.shared(torch.cat([u1, u2])).relu()
        assert s.shape == (3,)
        a = module.gates(s).sigmoid()
        v1, v2 = u1 + a[:6] * u2, u2 + a[6:] * u1
        l1, l2 = module.head1(v1), module.head2(v2)
        w1, w2 = module.mix(torch.cat([v1, v2])).sigmoid()
        torch.testing.assert_close(o1[n], (1 - w1) * l1 + w1 * l2)
        torch.testing.assert_close(o2[n], (1 - w2) * l2 + w2 * l1)
        torch.testing.assert_close(representation[n], (v1 + v2) / 2)


def test_the_gates_start_at_minus_two_also_when_drawn_anew() -> None:
    module = DebiasedInteraction(6, 4)
    before = module.head1.weight.clone()
    assert module.mix.bias.tolist() == [-2.0, -2.0]
    nn.init.zeros_(module.mix.bias)
    module.reset_parameters()
    assert module.mix.bias.tolist() == [-2.0, -2.0]
    assert not torch.equal(module.head1.weight, before)


def test_g1_alone() -> None:
    module = GivenBackground(6, 4)
    z_f, z_b = torch.randn(3, 6), torch.randn(3, 6)
    (logits,), u = module(z_f, z_b)
    torch.testing.assert_close(u, module.given(torch.cat([z_f, z_b], 1)).relu())
    torch.testing.assert_close(logits, module.head(u))


# Network


def encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def whole(share: bool = False, **options: bool) -> DeNLLNetwork:
    cut = Cut("soft")
    return DeNLLNetwork(encoder(), None if share else encoder(), 8, 4, 3, cut, **options)  # type: ignore[arg-type]


CASES = pytest.mark.parametrize("options", [{}, {"share": True}, {"use_lm": False}, {"use_dim": False}])


@CASES
def test_shapes_and_gradients_reach_every_parameter(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    network = whole(**options)
    if network.localization is not None:  # its last layer starts at zero, which stops gradients until it has moved
        nn.init.normal_(network.localization.place.weight, std=0.1)
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    parts = network.parts(images, labels)
    assert parts.mask.shape == ((1 if options.get("use_lm") is False else 6), 1, 16, 16)
    assert parts.foreground.shape == parts.background.shape == images.shape
    assert parts.z_f.shape == parts.z_b.shape == parts.representation.shape == (6, 8)
    heads = network.heads(images, labels)
    assert len(heads) == (1 if options.get("use_dim") is False else 2)
    assert all(head.shape == (6, 4) for head in heads)
    assert (parts.o2 is None) == (len(heads) == 1)
    sum(head.square().sum() for head in heads).backward()  # type: ignore[union-attr]
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


@CASES
def test_no_label_is_needed_to_predict(options: dict[str, bool]) -> None:
    network = whole(**options)
    images = torch.randn(6, 3, 16, 16)
    network.heads(images, torch.arange(6) % 4)
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    logits, representation = network.embedded(images)
    assert torch.equal(network(images), logits)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(6)) if "use_dim" not in options else None
    assert representation.shape == (6, 8)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_labels_change_the_memory_and_not_what_a_step_predicts_without_it() -> None:
    network = whole()
    images = torch.randn(6, 3, 16, 16)
    network.heads(images, torch.arange(6) % 4)
    assert network.memory is not None
    embedded = network.parts(images).z_b.detach()
    before = network.memory()
    network.heads(images)
    assert torch.equal(network.memory(), before)
    network.heads(images, torch.full((6,), -1))
    assert torch.equal(network.memory(), before)
    network.heads(images, torch.arange(6) % 4)
    sums, counts = class_sums(embedded, torch.arange(6) % 4, 4)
    torch.testing.assert_close(network.memory(), 0.99 * before + 0.01 * sums / counts.unsqueeze(1))


def test_a_shared_encoder_sees_both_halves_in_one_forward() -> None:
    network = whole(share=True)
    seen: list[int] = []
    network.encoder.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    network.heads(torch.randn(6, 3, 16, 16))
    assert seen == [12]
    assert network.background_encoder is None


@pytest.mark.parametrize(("share", "places"), [(False, ("encoder.0", "background_encoder.0")), (True, ("encoder.0",))])
def test_a_layer_of_the_backbone_is_in_every_encoder(share: bool, places: tuple[str, ...]) -> None:
    network = whole(share=share)
    assert layer_places(network, "0", "late") == places
    assert head_places(network, 4, "late") == ("interaction",)
