"""Whole-batch augmentation does what a loop over images does, with draws from one generator."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import vision
from recdenoise import seeds
from recdenoise.errors import UserError
from recdenoise.task import Pass
from tests.toy_images import image_task, jitter
from vision.augment import Augment, Draws
from vision.data import ImageData
from vision.loader import ImageLoader
from vision.options import read_train_options
from vision.policies import OPERATIONS, POLICIES, Policy, policy_table, transform
from vision.run import further_views

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def batch(n: int = 40, channels: int = 3, height: int = 10, width: int = 12, seed: int = 0) -> Tensor:
    shape = (n, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth(n: int = 40, channels: int = 3, size: int = 16) -> Tensor:
    """Images whose neighbouring pixels are alike."""
    small = batch(n, channels, 4, 4).float()
    return torch.nn.functional.interpolate(small, (size, size), mode="bilinear").to(torch.uint8)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(images: Tensor, draws: Draws, augment: Augment) -> Tensor:
    """The same augmentation, one image, one pixel at a time."""
    n, channels, height, width = images.shape
    out = torch.zeros(images.shape)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                from_x = width - 1 - x if draws.flip is not None and draws.flip[i] else x
                from_y = y
                if draws.top is not None and draws.left is not None:
                    from_y = y + int(draws.top[i]) - augment.crop_pad
                    from_x = from_x + int(draws.left[i]) - augment.crop_pad
                if augment.pad_mode == "reflect":
                    from_y = height - 1 - abs(height - 1 - abs(from_y))
                    from_x = width - 1 - abs(width - 1 - abs(from_x))
                inside = 0 <= from_y < height and 0 <= from_x < width
                hole = False
                if draws.hole_y is not None and draws.hole_x is not None:
                    first_y = int(draws.hole_y[i]) - augment.cutout // 2
                    first_x = int(draws.hole_x[i]) - augment.cutout // 2
                    hole = 0 <= y - first_y < augment.cutout and 0 <= x - first_x < augment.cutout
                for c in range(channels):
                    value = float(images[i, c, from_y, from_x]) / 255 if inside else 0.0
                    out[i, c, y, x] = 0.0 if hole else (value - augment.mean[c]) / augment.std[c]
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_pad": 0},
        {"flip": False, "crop_pad": 3},
        {"cutout": 5},
        {"crop_pad": 0, "flip": False, "cutout": 4},
        {"pad_mode": "reflect", "cutout": 3},
    ],
)
def test_a_batch_is_a_loop_over_images(options: dict[str, Any]) -> None:
    augment, images = Augment(MEAN, STD, **options), batch(12)
    draws = augment.draw(12, 10, 12, seeded())
    torch.testing.assert_close(augment(images, seeded()), by_hand(images, draws, augment), rtol=1e-5, atol=1e-5)


def test_without_training_it_only_normalises() -> None:
    augment, images, generator = Augment(MEAN, STD, cutout=4, policy="randaugment"), batch(), seeded()
    before = generator.get_state()
    plain = augment(images, generator, train=False)
    assert torch.equal(generator.get_state(), before)
    wanted = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(plain.double(), wanted, rtol=1e-5, atol=1e-5)
    assert plain.dtype == torch.float32


@pytest.mark.parametrize("policy", [None, *POLICIES])
def test_draws_come_from_the_generator_alone(policy: str | None) -> None:
    augment, images, kept = Augment(MEAN, STD, cutout=3, policy=policy), batch(), batch()
    generator = seeded()
    torch.manual_seed(1)
    first = augment(images, generator)
    middle = generator.get_state()
    second = augment(images, generator)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(augment(images, seeded()), first)
    generator.set_state(middle)
    assert torch.equal(augment(images, generator), second)
    assert torch.equal(images, kept)


def test_draws_are_uniform() -> None:
    augment = Augment(MEAN, STD, cutout=4)
    draws = augment.draw(81_000, 7, 9, seeded())
    assert draws.top is not None
    assert draws.left is not None
    counts = torch.bincount(draws.top * 9 + draws.left, minlength=81)
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 124.8  # 80 degrees of freedom, p = 0.001
    assert draws.flip is not None
    assert abs(float(draws.flip.float().mean()) - 0.5) < 0.006
    assert draws.hole_y is not None
    assert sorted(draws.hole_y.unique().tolist()) == list(range(7))
    assert draws.hole_x is not None
    assert sorted(draws.hole_x.unique().tolist()) == list(range(9))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_torchvision(name: str, channels: int) -> None:
    """Against the v2 function on single images; a pixel at the edge between two may go to either."""
    from torchvision.transforms import v2

    space = v2.AutoAugment._AUGMENTATION_SPACE
    images = smooth(channels=channels)
    values = space[name][0](10, 16, 16) if name in space else None
    levels = [0.0] * 10 if values is None else [float(each) for each in values]
    signed = name in space and space[name][1]
    strength = torch.tensor([(-1 if signed and i % 20 >= 10 else 1) * levels[i % 10] for i in range(40)])
    found = transform(images, torch.full((40,), OPERATIONS.index(name)), strength.double())
    chosen = v2.AutoAugment()
    wanted = torch.stack(
        [
            chosen._apply_image_or_video_transform(image, name, float(each), chosen.interpolation, chosen._fill)
            for image, each in zip(images, strength, strict=True)
        ]
    )
    assert found.dtype == torch.uint8
    distance = (found.int() - wanted.int()).abs()
    if name in ("ShearX", "ShearY", "Rotate"):
        assert float((distance > 0).float().mean()) < 0.002
    else:
        assert int(distance.max()) <= 1  # a sum in another order is cut to another whole level
        assert float((distance > 0).float().mean()) < 0.01


def test_images_keep_their_places_under_a_policy() -> None:
    images = smooth(30)
    code = torch.arange(30) % len(OPERATIONS)
    strength = torch.full((30,), 0.3, dtype=torch.float64)
    together = transform(images, code, strength)
    for i in range(30):
        assert torch.equal(together[i : i + 1], transform(images[i : i + 1], code[i : i + 1], strength[i : i + 1]))


@pytest.mark.parametrize("name", POLICIES)
def test_policies_draw_what_their_tables_say(name: str) -> None:
    table = policy_table(name, 32, 32)
    drawn = table.draw(50_000, seeded())
    assert drawn.code.shape == drawn.strength.shape == (table.slots, 50_000)
    for slot in range(table.slots):
        column = slot % table.code.shape[1]
        wanted = torch.zeros(len(OPERATIONS)).index_add_(
            0, table.code[:, column], table.chance[:, column] / len(table.code)
        )
        wanted[0] += 1 - wanted.sum()
        found = torch.bincount(drawn.code[slot], minlength=len(OPERATIONS)) / 50_000
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=0, atol=0.01)
    if name == "autoaugment":
        pairs = {(int(a), int(b)) for a, b in drawn.code.T}
        rotate, solarize = OPERATIONS.index("Rotate"), OPERATIONS.index("Solarize")
        assert (rotate, OPERATIONS.index("TranslateX")) in pairs
        assert (rotate, solarize) not in pairs


def test_signs_are_drawn_for_signed_operations() -> None:
    drawn: Policy = policy_table("randaugment", 32, 32, num_ops=1, magnitude=30).draw(20_000, seeded())
    turned = drawn.strength[0][drawn.code[0] == OPERATIONS.index("Rotate")]
    assert sorted(turned.unique().tolist()) == [-30.0, 30.0]
    assert abs(float((turned > 0).double().mean()) - 0.5) < 0.05
    assert drawn.strength[0][drawn.code[0] == OPERATIONS.index("Posterize")].unique().tolist() == [4.0]


def test_options_are_checked() -> None:
    for options, message in [
        ({"crop_pad": -1}, "'crop_pad' is -1; it must be 0 or more"),
        ({"cutout": -2}, "'cutout'"),
        ({"policy": "autoagument"}, "Did you mean 'autoaugment'"),
        ({"std": (0.0, 1.0, 1.0)}, "'std'"),
        ({"std": (1.0,)}, "mean has 3 values and std 1"),
        ({"pad_mode": "mirror"}, "zeros or reflect"),
        ({"magnitude": 31}, "0 to 30"),
    ]:
        with pytest.raises(UserError, match=message):
            Augment(**{"mean": MEAN, "std": STD, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [batch(channels=1), batch().float(), batch()[0]])
def test_batches_that_are_none_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"must be uint8 \(n, 3, H, W\)"):
        Augment(MEAN, STD)(images, seeded())


def test_small_images_cannot_be_mirrored_far() -> None:
    with pytest.raises(UserError, match="lower crop_pad"):
        Augment(MEAN, STD, pad_mode="reflect", crop_pad=10)(batch(), seeded())


def test_digits_are_not_mirrored() -> None:
    digits = ImageData(batch(channels=1), torch.arange(40) % 10, 10, name="mnist")
    assert not Augment.for_data(digits).flip
    assert Augment.for_data(digits, flip=True).flip
    augment = Augment.for_data(ImageData(batch(), torch.arange(40) % 10, 10), crop_pad=0, flip=False)
    floats = augment(batch(), seeded())
    torch.testing.assert_close(floats.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(floats.std((0, 2, 3), unbiased=False), torch.ones(3))


def test_every_view_but_the_first_may_have_a_policy_of_its_own() -> None:
    weak = Augment((0.5,), (0.25,), crop_pad=1, flip=False)
    strong = dataclasses.replace(weak, policy="randaugment")
    tasks = [image_task(augment=weak), image_task(augment=weak, further=strong)]
    plain, split = (ImageLoader(task, Pass(views=3), (0, 0, 0)).batch(1) for task in tasks)
    raw = tasks[0].fetch(tasks[0].source("train"), split.index)
    generator = seeds.generator("cpu", tasks[0].seed, "augment", "", 0, 0, 0, 1)
    for seen, augment in zip(split.views, (weak, strong, strong), strict=True):
        assert torch.equal(seen, augment(raw, generator))
    assert torch.equal(plain.views[0], split.views[0])
    assert not torch.equal(plain.views[1], split.views[1])
    assert not torch.equal(split.views[1], split.views[2])


def test_a_run_takes_the_second_policy() -> None:
    images = batch(24, 1, 8, 8)[:, 0].numpy()
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "valid": 0, "second_policy": "autoaugment"}
    result = vision.fit("mlp", (images, [0, 1, 2] * 8), method="sop_plus", **options)
    augment, further = result.run.task.augment, result.run.task.further
    assert isinstance(augment, Augment)
    assert augment.policy is None
    assert further == dataclasses.replace(augment, policy="autoaugment")
    with pytest.raises(UserError, match="Unknown augmentation policy 'fixmatch'"):
        vision.fit("mlp", (images, [0, 1, 2] * 8), method="sop_plus", **{**options, "second_policy": "fixmatch"})
    with pytest.raises(UserError, match="cannot change function, an augmentation of your own"):
        further_views(jitter, read_train_options({"second_policy": "autoaugment"}))


def test_policies_are_refused_for_images_that_they_do_not_know() -> None:
    for channels in (2, 4, 5):
        with pytest.raises(UserError, match=f"are for images of 1 or 3 channels; these have {channels}"):
            Augment((0.5,) * channels, (0.25,) * channels, policy="autoaugment")
        Augment((0.5,) * channels, (0.25,) * channels)
