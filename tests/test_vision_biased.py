"""Colored and corrupted images: exact shares, colours and corruptions against other programs, the same every time."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from recdenoise.errors import UserError
from recdenoise.noise import uniform_draws
from vision import data
from vision.augment import Augment
from vision.data import ImageData, biased, corruptions, derived, image_filters
from vision.experiment import prepare
from vision.settings import resolve

SIDE = 32


def chance(seed: int = 0) -> corruptions.Chance:
    return corruptions.Chance(uniform_draws(seed, "test"))


def photographs(n: int = 6, seed: int = 0) -> torch.Tensor:
    """Smooth random colours, ``(n, 3, 32, 32)`` from 0 to 1 in steps of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((n, 3, 6, 6), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    return (smooth * 255).round() / 255


def digits(each: int = 200) -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (10 * each, 6, 6), dtype=np.uint8)
    return data.load((images, np.arange(10 * each) % 10))


@pytest.mark.parametrize(("share", "own"), [(0.95, 190), (0.98, 196), (0.99, 198), (0.995, 199)])
def test_shares_are_exact(share: float, own: int) -> None:
    labels = digits().labels
    found = biased.assign(labels, 10, share, 0, "train")
    for label in range(10):
        counts = torch.bincount(found[labels == label], minlength=10)
        others = counts[torch.arange(10) != label]
        assert counts[label] == own
        assert others.max() - others.min() <= 1
    overall = torch.bincount(found, minlength=10)
    assert overall.max() - overall.min() <= 10  # what is left over is spread over the values
    assert torch.equal(found, biased.assign(labels, 10, share, 0, "train"))
    assert not torch.equal(found, biased.assign(labels, 10, share, 1, "train"))


def test_a_test_has_every_pair_of_class_and_bias_equally_often() -> None:
    found = biased.colored(digits(), 0.99, "test")
    pairs = found.labels * 10 + found.attributes["bias"]
    assert torch.bincount(pairs).tolist() == [20] * 100


def test_colours_by_hand() -> None:
    base, found = digits(), biased.colored(digits(), 0.95)
    images = found.images
    assert isinstance(images, torch.Tensor)
    assert isinstance(base.images, torch.Tensor)
    wanted = torch.tensor(biased.COLOURS)[found.attributes["bias"]].view(-1, 3, 1, 1)
    away = images.float() / 255 - wanted * base.images.float() / 255
    assert away.abs().max() < 0.03  # five standard deviations of 0.005, and rounding
    white = base.images.expand_as(images) == 255
    full = wanted.expand_as(images).eq(0.5) & white  # not cut off at 0 or 1
    assert away[full].std() == pytest.approx(biased.JITTER[3], rel=0.15)
    # one colour an image: the ratio of two channels is the same at every bright pixel
    orange = found.attributes["bias"] == 6
    pixels = images[orange][0].flatten(1).float()[:, (base.images[orange][0].flatten() > 200)]
    assert (pixels[1] / pixels[0]).std() < 0.01
    assert not torch.equal(images, biased.colored(digits(), 0.95, seed=1).images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colored-mnist:0", "share of bias-aligned images is '0'; it must be above 0"),
        ("colored-mnist:99", "share of bias-aligned images is '99'; it must be above 0 and at most 1, such as 0.99"),
        ("colored-mnist:much", "share of bias-aligned images is 'much'"),
        ("corrupted-cifar10:0.95", "must read corrupted-BASE-TYPE:SHARE, types type1 and type2"),
        ("corrupted-cifar10-type3:0.95", "must read corrupted-BASE-TYPE:SHARE"),
        ("colored-mnist:0.99,hue=3", "Unknown option of colored images 'hue'"),
    ],
)
def test_bad_names_get_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(name)


def test_what_cannot_be_biased_is_refused() -> None:
    colour = data.load((np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2))
    with pytest.raises(UserError, match="Colored images are made from grey images in memory, of up to 10 classes"):
        biased.colored(colour, 0.9)
    with pytest.raises(UserError, match="Corruptions are for square colour images of 24 to 64 pixels; these are 8 x 8"):
        biased.corrupted(colour, "type1", 0.9)
    with pytest.raises(UserError, match="severity is 6; it must be 1 to 5"):
        biased.colored(digits(), 0.9, severity=6)
    many = data.load((np.zeros((22, 8, 8), np.uint8), np.arange(22) % 11))
    with pytest.raises(UserError, match="have 1 channels and 11 classes"):
        biased.colored(many, 0.9)


# Corruptions, beside other programs or formulas

EVERY = [each for kind in corruptions.TYPES.values() for each in kind]


@pytest.mark.parametrize("corruption", EVERY, ids=lambda each: each.__name__)
def test_each_corruption_is_one_of_every_image_alone(corruption: corruptions.Corruption) -> None:
    images = photographs()
    kept = images.clone()
    found = corruption(images, chance())
    assert torch.equal(images, kept)
    assert (found.shape, found.dtype) == (images.shape, torch.float32)
    assert bool(found.isfinite().all())
    assert torch.equal(found, corruption(images, chance()))
    changed = (found.clamp(0, 1) - images).abs().mean((1, 2, 3))
    assert bool((changed > 0.003).all()) == (corruption is not corruptions.original)
    # another first image changes none of the others
    other = corruption(torch.cat([1 - images[:1], images[1:]]), chance())
    assert torch.equal(other[1:], found[1:])


def test_noises_have_their_moments() -> None:
    grey = torch.full((40, 3, SIDE, SIDE), 102 / 255)
    assert (corruptions.gaussian_noise(grey, chance()) - grey).std() == pytest.approx(0.09, rel=0.02)
    assert (corruptions.speckle_noise(grey, chance()) - grey).std() == pytest.approx(0.16 * 0.4, rel=0.02)
    shot = corruptions.shot_noise(grey, chance())
    counts = torch.bincount((shot * 75).round().long().flatten(), minlength=60)[:60] / shot.numel()
    assert np.abs(counts.numpy() - stats.poisson.pmf(np.arange(60), 30)).max() < 0.003
    assert corruptions.shot_noise(torch.zeros(1, 3, SIDE, SIDE), chance()).sum() == 0
    impulse = corruptions.impulse_noise(grey, chance())
    assert [float((impulse == value).float().mean()) for value in (0.0, 1.0)] == pytest.approx([0.025] * 2, rel=0.1)


def test_blurs_are_those_of_scipy() -> None:
    images = photographs(2)
    wanted = ndimage.gaussian_filter(images.numpy(), (0, 0, 0.8, 0.8), mode="nearest")
    assert np.abs(corruptions.gaussian_blur(images, chance()).numpy() - wanted).max() < 1e-5
    field = torch.rand(2, 1, 20, 20)
    wanted = ndimage.gaussian_filter(field.numpy(), (0, 0, 1.28, 1.28), mode="reflect", truncate=3)
    assert np.abs(image_filters.gaussian(field, 1.28, "symmetric", 3.0).numpy() - wanted).max() < 1e-5
    kernel = image_filters.disk(1.0, 0.2)
    assert kernel.sum() == pytest.approx(1, abs=1e-4)
    assert kernel[2, 1:4].tolist() == pytest.approx([0.2, 0.2, 0.2], abs=1e-4)  # a plus of five pixels, hardly softened
    wanted = ndimage.correlate(images.numpy(), kernel[None, None].numpy(), mode="mirror")
    assert np.abs(corruptions.defocus_blur(images, chance()).numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize("factor", [1.0, 1.03, 1.2, 2.25])
def test_zooms_are_those_of_scipy(factor: float) -> None:
    image = photographs(1)
    kept = int(np.ceil(SIDE / factor - 1e-9))
    first = (SIDE - kept) // 2
    middle = image[0, :, first : first + kept, first : first + kept].numpy()
    large = ndimage.zoom(middle, (1, factor, factor), order=1)
    cut = (large.shape[1] - SIDE) // 2
    wanted = large[:, cut : cut + SIDE, cut : cut + SIDE]
    assert np.abs(image_filters.zoom(image, factor)[0].numpy() - wanted).max() < 1e-5


def test_motion_goes_where_it_points() -> None:
    images = torch.zeros(2, 1, 9, 9)
    images[:, :, 4, 4] = 1
    found = image_filters.motion(images, 2, 1.0, torch.tensor([0.0, 90.0]))
    weights = np.exp(-(np.arange(5) ** 2) / 2)
    weights /= weights.sum()
    assert found[0, 0, 4, :5].flip(0).tolist() == pytest.approx(weights.tolist(), abs=1e-6)
    assert found[1, 0, :5, 4].flip(0).tolist() == pytest.approx(weights.tolist(), abs=1e-6)
    assert found.sum((1, 2, 3)).tolist() == pytest.approx([1, 1])


def test_pixelating_is_that_of_pillow() -> None:
    image = photographs(1)
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    wanted = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BOX)
    found = corruptions.pixelate(image, chance())[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - np.asarray(wanted)).max() < 1.01  # Pillow rounds in between


def test_brightness_and_saturation_are_those_of_hsv() -> None:
    images = photographs(1)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0.0, 0.5  # black, grey
    for corruption, index, change in (
        (corruptions.brightness, 2, lambda value: min(value + 0.2, 1)),
        (corruptions.saturate, 1, lambda value: min(2 * value + 0.1, 1)),
    ):
        found = corruption(images, chance())
        for y, x in ((0, 0), (0, 1), (5, 7), (20, 31), (12, 12)):
            hsv: list[Any] = list(colorsys.rgb_to_hsv(*images[0, :, y, x].tolist()))
            hsv[index] = change(hsv[index])
            assert found[0, :, y, x].tolist() == pytest.approx(colorsys.hsv_to_rgb(*hsv), abs=1e-5)


def test_weather_and_the_rest_by_their_formulas() -> None:
    images = photographs(3)
    mean = images.mean((2, 3), keepdim=True)
    assert torch.allclose(corruptions.contrast(images, chance()), 0.3 * images + 0.7 * mean, atol=1e-6)
    clouds = image_filters.plasma(SIDE, SIDE, chance().uniform(3, 32, 32), 2.0)
    assert [float(clouds.amin((1, 2)).max()), float(clouds.amax((1, 2)).min())] == [0, 1]
    most = images.amax((1, 2, 3), keepdim=True)
    assert torch.allclose(
        corruptions.fog(images, chance()), (images + clouds.unsqueeze(1)) * most / (most + 1), atol=1e-6
    )
    mud = corruptions.spatter(images, chance())
    share = float((mud != images).any(1).float().mean())
    assert 0.01 < share < 0.3
    assert mud[(mud != images).any(1, keepdim=True).expand_as(mud)].mean() < images.mean()
    warped = corruptions.elastic(torch.full((2, 3, SIDE, SIDE), 0.4), chance())
    assert torch.allclose(warped, torch.full_like(warped, 0.4), atol=1e-5)
    glass = corruptions.glass_blur(images, chance())
    assert torch.allclose(glass[:, :, :2, :1], images[:, :, :2, :1], atol=1e-3)  # the first rows and columns stay
    white = corruptions.snow(torch.zeros(20, 3, SIDE, SIDE), chance())
    assert 0.08 < white.mean() < 0.4
    assert torch.equal(white[:, 0], white[:, 1])


def test_plasma_is_rougher_the_slower_it_decays() -> None:
    smooth, rough = (image_filters.plasma(32, 32, chance().uniform(8, 32, 32), decay) for decay in (3.0, 1.2))
    assert smooth.diff(dim=1).abs().mean() < 0.5 * rough.diff(dim=1).abs().mean()


# By name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images = (photographs(40) * 255).to(torch.uint8)
    labels = np.arange(40) % 10
    np.savez(tmp_path / "small.npz", images=images, labels=labels, images_test=images[:20], labels_test=labels[:20])
    return tmp_path / "small.npz"


def test_corrupted_images_are_made_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    name = f"corrupted-{file}-type2:0.75"
    found = data.load(name, root=cache)
    stored = list(cache.rglob("*.npz"))
    assert [each.parent.name for each in stored] == ["corrupted-small-type2-0.75"]
    assert [int((found.attributes["bias"] == found.labels)[found.labels == c].sum()) for c in range(10)] == [3] * 10
    first = stored[0].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(corruptions, "TYPES", {})  # nothing is made anew
        again = data.load(name, root=cache)
    assert torch.equal(again.images, found.images)  # type: ignore[arg-type]
    assert torch.equal(again.attributes["bias"], found.attributes["bias"])
    assert (again.name, again.n_classes) == (name, 10)
    broken = bytearray(first)
    broken[len(first) // 2] ^= 255
    stored[0].write_bytes(bytes(broken))
    assert torch.equal(data.load(name, root=cache).images, found.images)  # type: ignore[arg-type]
    assert stored[0].read_bytes() == first  # the same bytes
    data.load(f"{name},seed=1", root=cache)
    data.load(name, split="test", root=cache)
    assert len(list(cache.rglob("*.npz"))) == 3
    data.load(name.replace("0.75", "0.5"), split="test", root=cache)  # a test is the same at every share
    assert len(list(cache.rglob("*.npz"))) == 3
    changed = dict(np.load(file))
    changed["images"] = changed["images"][::-1]
    np.savez(file, **changed)
    assert not torch.equal(data.load(name, root=cache).images, found.images)  # type: ignore[arg-type]


def test_a_class_has_the_corruption_of_its_number(file: Path, tmp_path: Path) -> None:
    base, found = data.load(file), data.load(f"corrupted-{file}-type2:1", root=tmp_path)
    same = (base.images == found.images).flatten(1).all(1)  # type: ignore[union-attr,operator]
    assert same.tolist() == [label == 9 for label in base.labels.tolist()]  # class 9 keeps the original


def test_a_run_on_a_colored_set_measures_its_parts(tmp_path: Path) -> None:
    base = digits(20)
    np.savez(
        tmp_path / "d.npz", images=base.images, labels=base.labels, images_test=base.images, labels_test=base.labels
    )
    settings = resolve(
        f"colored-{tmp_path}/d.npz:0.95", "mlp", "normal", run_options={"device": "cpu", "batch_size": 8}
    )
    prepared = prepare(settings)
    assert {name: len(part) for name, part in prepared.tests.items()} == {"aligned": 20, "conflicting": 180}
    assert not Augment.for_data(data.load("colored-" + str(tmp_path / "d.npz") + ":0.9")).frame


def test_colored_mnist_is_not_mirrored(real_data: Path) -> None:
    found = data.load("Colored_MNIST:0.99")
    assert (found.name, found.shape) == ("colored-mnist:0.99", (3, 28, 28))
    assert not Augment.for_data(found).flip
    own = (found.attributes["bias"] == found.labels).double().mean()
    assert own == pytest.approx(0.99, abs=1e-4)
    assert derived.slug(found.name) == "colored-mnist-0.99"
