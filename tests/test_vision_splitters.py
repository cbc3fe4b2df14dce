"""Content and context: the detector on synthetic pictures, patterns, masks on disk, and masks that move with images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recdenoise.errors import UserError
from recdenoise.task import Pass
from tests.toy_images import image_task
from vision import splitters
from vision.augment import Augment
from vision.data import ImageData, load
from vision.data.masks import as_masks
from vision.saliency import boundary_contrast, threshold
from vision.task import ImageTask


def picture(channels: int, seed: int = 0, touches: bool = False) -> tuple[Tensor, Tensor]:
    """Four noisy pictures of 48 x 40 with an ellipse of another colour, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    centre = 4.0 if touches else 22.0
    truth = (((y - 24) / 14) ** 2 + ((x - centre) / 9) ** 2 <= 1).view(1, 1, 48, 40).expand(4, 1, 48, 40)
    ground = torch.rand(4, channels, 1, 1, generator=generator) * 0.4
    colour = ground + 0.4 + 0.1 * torch.rand(4, channels, 1, 1, generator=generator)
    noise = 0.05 * torch.randn(4, channels, 48, 40, generator=generator)
    return (torch.where(truth, colour, ground) + noise).clamp(0, 1), truth


def overlap(found: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each picture."""
    both, either = (found & truth).sum((1, 2, 3)), (found | truth).sum((1, 2, 3))
    return both / either


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("touches", [False, True])
def test_the_detector_finds_an_object_also_where_it_touches_a_side(channels: int, touches: bool) -> None:
    images, truth = picture(channels, touches=touches)
    saliency = boundary_contrast(images)
    assert saliency.shape == truth.shape
    assert ((saliency >= 0) & (saliency <= 1)).all()
    assert (overlap(saliency > 0.5, truth) > 0.85).all()


def test_the_detector_looks_at_each_image_by_itself_and_sees_nothing_in_one_colour() -> None:
    images, _ = picture(3)
    torch.testing.assert_close(boundary_contrast(images)[2:3], boundary_contrast(images[2:3]), rtol=1e-4, atol=1e-5)
    assert (boundary_contrast(torch.full((2, 3, 16, 16), 0.3)) <= 0.5).all()


def test_the_level_is_the_best_of_all_levels() -> None:
    values = torch.cat([torch.linspace(0.0, 0.3, 30), torch.linspace(0.7, 1.0, 34)]).view(1, 1, 8, 8)

    def between(level: float) -> float:
        low, high = values[values < level], values[values >= level]
        return len(low) * len(high) * float(high.mean() - low.mean()) ** 2 if len(low) and len(high) else 0.0

    best = max(between(step / 64) for step in range(1, 64))
    assert between(threshold(values).item()) == pytest.approx(best, rel=1e-3)


def test_a_frame_is_context_and_what_it_frames_content() -> None:
    mask = splitters.frame(6, 8, 2)
    expected = torch.zeros(6, 8)
    expected[2:4, 2:6] = 1
    assert torch.equal(mask[0, 0], expected)
    for pixels in (0, 3):
        with pytest.raises(UserError, match=f"'frame' is {pixels}; images of 6 x 8 can have one of 1 to 2 pixels"):
            splitters.frame(6, 8, pixels)


@pytest.mark.parametrize("fill", ["blank", "mean"])
def test_split_by_a_plain_loop(fill: str) -> None:
    images, masks = torch.randn(2, 3, 4, 5), (torch.rand(2, 1, 4, 5) > 0.5).float()
    parts = splitters.split(images, masks, fill)  # type: ignore[arg-type]
    for part, own in zip(parts, (masks, 1 - masks), strict=True):
        for n in range(2):
            for c in range(3):
                inside = [float(v) for v, m in zip(images[n, c].flatten(), own[n, 0].flatten(), strict=True) if m]
                empty = sum(inside) / len(inside) if fill == "mean" else 0.0
                wanted = [
                    float(v) if m else empty for v, m in zip(images[n, c].flatten(), own[n, 0].flatten(), strict=True)
                ]
                assert part[n, c].flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_part_pasted_before_its_own_context_is_the_image() -> None:
    images, masks = torch.randn(3, 3, 6, 6), (torch.rand(3, 1, 6, 6) > 0.5).float()
    content, context = splitters.split(images, masks)
    assert torch.equal(splitters.paste(content, context, masks), images)


def test_a_function_of_ones_own_is_a_splitter_by_name() -> None:
    @splitters.register("left half for a test")
    def left(images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        assert images.max() <= 1
        return torch.cat([torch.ones_like(half := images[:, 0, :, ::2]), torch.zeros_like(half)], 2)

    raw = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8)
    mask = splitters.detect("left half for a test", raw)
    assert mask.shape == (2, 1, 4, 6)
    assert torch.equal(mask[0, 0], torch.tensor([[255] * 3 + [0] * 3] * 4, dtype=torch.uint8))
    with pytest.raises(UserError, match="has a splitter called saliency"):
        splitters.register("saliency")(left)
    with pytest.raises(UserError, match=r"splitter .salience.*saliency"):
        splitters.detect("salience", raw)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"gave \(2, 3, 4, 4\) for 2 images of 4 x 4; it must give \(2, 1, 4, 4\)"),
        (torch.full((2, 4, 4), 255.0), "gave numbers from 255 to 255; they must be 0"),
        (None, "gave NoneType for 2 images"),
    ],
)
def test_what_is_no_mask_is_refused(found: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        splitters.as_masks(found, torch.zeros(2, 3, 4, 4), "mine")


# Masks that move


def test_masks_move_with_their_images() -> None:
    """Images that show their own mask: they stay equal through crops, mirrors and the moves of a policy."""
    masks = (torch.rand(64, 1, 16, 16) > 0.5).to(torch.uint8) * 255
    for options in ({"crop_pad": 3}, {"crop_pad": 0, "flip": True}, {"crop_pad": 2, "policy": "randaugment"}):
        augment = Augment((0.0,), (1.0,), **{"flip": False, **options})  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)
        images, moved = augment.masked(masks, masks, generator, True, 64, slice(0, 64))
        alone = augment(masks, torch.Generator().manual_seed(1))
        assert torch.equal(images, alone)
        assert set(moved.unique().tolist()) <= {0.0, 1.0}
        assert not torch.equal(moved, masks / 255)
        if "policy" not in options:
            assert torch.equal(images, moved)
        else:  # colours change, and what moved has the same corners of nothing
            draws = augment.draw(64, 16, 16, torch.Generator().manual_seed(1))
            assert draws.policy is not None
            still = (draws.policy.code > 5).all(0) | (draws.policy.code == 0).all(0)
            plain = augment._moved(masks, draws) / 255
            assert torch.equal(moved[still], plain[still])
            assert not torch.equal(moved[~still], plain[~still])


def test_a_part_of_a_batch_has_the_masks_of_the_whole() -> None:
    augment = Augment((0.0,), (1.0,), crop_pad=2)
    images, masks = (
        torch.randint(0, 256, (8, 1, 9, 9), dtype=torch.uint8),
        torch.full((8, 1, 9, 9), 255, dtype=torch.uint8),
    )
    whole = augment.masked(images, masks, torch.Generator().manual_seed(2), True, 8, slice(0, 8))
    part = slice(3, 5)
    shared = augment.masked(images[part], masks[part], torch.Generator().manual_seed(2), True, 8, part)
    assert all(torch.equal(a[part], b) for a, b in zip(whole, shared, strict=True))


def masked_data(n: int = 20) -> ImageData:
    images = torch.randint(0, 256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    masks = (images > 127).to(torch.uint8) * 255
    return ImageData(images, torch.arange(n) % 2, 2, masks=masks)


def test_masks_stay_with_their_rows() -> None:
    data = masked_data()
    part = data.subset(torch.tensor([7, 2, 2])).to("cpu")
    assert torch.equal(part.masks, data.masks[[7, 2, 2]])  # type: ignore[index, arg-type]
    with pytest.raises(UserError, match=r"masks must be a uint8 tensor of shape \(20, 1, 6, 6\)"):
        ImageData(data.images, data.labels, 2, masks=torch.zeros(20, 6, 6))


def mask_task(data: ImageData, splitter: str = "precomputed") -> ImageTask:
    task = ImageTask(
        data,
        new_model=lambda _: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)),
        augment=Augment((0.0,), (1.0,), crop_pad=1),
        seed=1,
        batch_size=5,
    )
    task.isolate(splitter)
    return task


def test_batches_and_scans_carry_masks_as_their_last_channel() -> None:
    data = masked_data()
    task = mask_task(data)
    partner = torch.arange(20).roll(3)
    for batch in task.loader(Pass(streams={"context": Pass(rows=partner, paired=True)}), (0, 0, 0)).batches():
        for each in (batch, batch.streams["context"]):
            image, mask = each.inputs.unbind(1)
            assert torch.equal(mask, (image * 255 > 127.5).float())
    scanned = task.scan(lambda inputs: inputs)
    assert torch.equal(scanned[:, 1:] * 255, data.masks.float())  # type: ignore[union-attr]
    assert task.scan_data(data, lambda inputs: inputs, masked=False).shape == (20, 1, 6, 6)


def test_a_detector_finds_the_same_masks_once_or_batch_by_batch() -> None:
    data = masked_data()
    task, raw = mask_task(data, "saliency"), data.images
    assert isinstance(raw, Tensor)
    assert task.isolation is not None
    rows = torch.tensor([4, 9])
    once = task.isolation.masks(data, rows, raw[rows], keep=True)
    assert torch.equal(once, task.isolation.masks(data, rows, raw[rows], keep=False))
    assert torch.equal(once, splitters.detect("saliency", raw)[rows])


def test_masks_that_are_not_there_and_augmentations_that_leave_them_behind_are_refused() -> None:
    data = masked_data()
    bare = ImageData(data.images, data.labels, 2)
    task = mask_task(bare)
    with pytest.raises(UserError, match="'precomputed' needs a mask for every image: say masks=PATH"):
        next(iter(task.loader(Pass(), (0, 0, 0)).batches()))
    with pytest.raises(UserError, match="function cannot move masks"):
        image_task().isolate("saliency")
    with pytest.raises(UserError, match="Unknown splitter"):
        mask_task(bare, "nothing")


# Masks on disk


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def folder(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve images and their masks, as image files in two classes; a mask shows where its image is bright."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(12):
            image = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            place = Path(split) / f"class{number % 2}" / f"{number:02}"
            write(tmp_path / "images" / place.with_suffix(".png"), image)
            write(tmp_path / "masks" / place.with_suffix(".png"), (image[..., 0] > 127).astype(np.uint8) * 255)
    return tmp_path / "images", tmp_path / "masks"


@pytest.mark.parametrize("memory", [1 << 20, 1])
def test_masks_of_a_folder_are_read_with_it_or_as_they_are_needed(tmp_path: Path, memory: int) -> None:
    images, masks = folder(tmp_path)
    for split in ("train", "test"):
        data = load(images, split=split, masks=masks, memory=memory)
        assert isinstance(data.masks, Tensor) == (memory > 1)
        rows = torch.tensor([5, 0, 11])
        assert data.masks is not None
        assert torch.equal(data.masks[rows][:, 0] > 0, data.images[rows][:, 0] > 127)
    task = ImageTask(
        load(images, masks=masks, memory=memory),
        new_model=lambda _: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)),
        augment=Augment((0.0,) * 3, (1.0,) * 3, crop_pad=1),
        seed=1,
        batch_size=4,
    )
    task.isolate("precomputed")
    sweep = Pass(streams={"context": Pass(rows=torch.arange(12).roll(1), paired=True)})
    seen = 0
    for batch in task.loader(sweep, (0, 0, 0)).batches():
        for each in (batch, batch.streams["context"]):
            assert torch.equal(each.inputs[:, 3], (each.inputs[:, 0] * 255 > 127.5).float())
            seen += len(each.label)
        assert torch.equal(batch.streams["context"].index, (batch.index - 1) % 12)
    assert seen == 24
    late = list(task.loader(sweep, (0, 0, 0)).batches(start=2))
    assert torch.equal(late[0].inputs, batch.inputs)
    assert torch.equal(late[0].streams["context"].inputs, batch.streams["context"].inputs)


def test_a_missing_or_unfit_mask_is_named(tmp_path: Path) -> None:
    images, masks = folder(tmp_path)
    write(masks / "train" / "class1" / "03.png", np.zeros((8, 9), dtype=np.uint8))
    with pytest.raises(UserError, match=r"The mask .*03.png is 8 x 9 and its image .*03.png 8 x 8"):
        load(images, masks=masks)
    (masks / "train" / "class1" / "03.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"03.png cannot be read as an image"):
        load(images, masks=masks)
    (masks / "train" / "class1" / "03.png").unlink()
    with pytest.raises(UserError, match=r"There is no mask .*masks/train/class1/03.png for the image .*images/train"):
        load(images, masks=masks)
    with pytest.raises(UserError, match="is a folder of masks, and the images are no folder"):
        load((np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])), masks=masks)


def test_masks_in_arrays(tmp_path: Path) -> None:
    shares = np.array([[[0.0, 0.25], [0.5, 1.0]]])
    assert as_masks(shares, (1, 3, 2, 2)).flatten().tolist() == [0, 64, 128, 255]
    assert as_masks(shares > 0.3, (1, 3, 2, 2)).flatten().tolist() == [0, 0, 255, 255]
    assert as_masks((shares * 200).astype(np.uint8), (1, 1, 2, 2)).flatten().tolist() == [0, 50, 100, 200]
    path = tmp_path / "masks.npz"
    np.savez(path, masks_test=shares, masks=1 - shares)
    assert torch.equal(as_masks(path, (1, 1, 2, 2), "test"), as_masks(shares, (1, 1, 2, 2)))
    assert torch.equal(as_masks(path, (1, 1, 2, 2)), as_masks(1 - shares, (1, 1, 2, 2)))
    with pytest.raises(UserError, match="has no array masks_valid; it has masks_test, masks"):
        as_masks(path, (1, 1, 2, 2), "valid")
    with pytest.raises(UserError, match=r"have shape \(1, 2, 2\); 2 images of 2 x 2 need \(2, 2, 2\)"):
        as_masks(shares, (2, 1, 2, 2))
    with pytest.raises(UserError, match="hold numbers from 0 to 2; they must be 0 to 1"):
        as_masks(2 * shares, (1, 1, 2, 2))
    with pytest.raises(UserError, match=r"There is no file or folder .*nowhere.npz with masks"):
        as_masks(tmp_path / "nowhere.npz", (1, 1, 2, 2))
    (tmp_path / "broken.npz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is no readable .npz of masks"):
        as_masks(tmp_path / "broken.npz", (1, 1, 2, 2))


def test_arrays_are_loaded_with_their_masks() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    data = load((images, np.array([0, 1, 0, 1])), masks=images > 30)
    assert torch.equal(data.masks > 0, data.images > 30)  # type: ignore[operator]
