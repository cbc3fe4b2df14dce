"""Framed images, the synthetic CIFAR V1 to V4 of CIT (Qin et al., 2023, Table III, Figure 6): contexts that are known.

Every image gets a frame of one colour. ``a``, a property of its class that several classes share, and ``b``, a bias,
decide hue and brightness. In training ``b`` belongs to the class: two classes of one ``a`` have two values of ``b``.
In a test it does not. Frames are part of the images; augmentation moves only what is inside
(:attr:`vision.augment.Augment.frame`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recdenoise.errors import UserError, unknown_name
from recdenoise.noise import uniform_draws
from vision.data.images import ImageData

WIDTH = 4
"""Pixels of the frame, on every side."""
BRIGHTNESSES = (0.5, 1.0)
"""Values in HSV; the paper gives none. Hues are equally far apart from red on, the saturation is 1."""
TestBias = Literal["uniform", "derange"]


@dataclass(frozen=True)
class Version:
    """Which of hue and brightness ``a`` sets; ``b`` sets the rest (Table III)."""

    hue_by_a: bool
    brightness_by_a: bool
    test_bias: TestBias = "uniform"


VERSIONS = {
    "v1": Version(hue_by_a=True, brightness_by_a=True),
    "v2": Version(hue_by_a=True, brightness_by_a=False),
    "v3": Version(hue_by_a=False, brightness_by_a=True),
    "v4": Version(hue_by_a=False, brightness_by_a=False, test_bias="derange"),
}
"""V4's published baseline, 0.7%, is below chance: its test images cannot have had their own class's colour."""


@dataclass(frozen=True, eq=False)
class FramePlan:
    """Values and colours of the classes.

    Attributes:
        a, b: ``(C,)`` int64 of every class in training.
        colours: ``(values of a, values of b, 3)`` uint8 RGB.
        owner: ``(values of a, values of b)`` the class that has this frame in training, or -1.
    """

    a: Tensor
    b: Tensor
    colours: Tensor
    owner: Tensor


def plan(version: str, n_classes: int) -> FramePlan:
    """What the frames of a version are: two brightnesses, and as many hues as there are pairs of classes.

    Classes 2h and 2h + 1 share a hue, and have the first and the second brightness; where ``a`` is the brightness (V3),
    the first half of the classes shares one, each with a hue of its own.

    Args:
        version: ``v1`` to ``v4``.
        n_classes: with ten, the five hues of CIFAR-10; with a hundred, the fifty of CIFAR-100.

    Raises:
        UserError: an unknown version.
    """
    if version not in VERSIONS:
        raise unknown_name("version of framed images", version, VERSIONS)
    chosen, number = VERSIONS[version], torch.arange(n_classes)
    hues = (n_classes + 1) // 2
    table = _hsv_to_rgb(torch.arange(hues).double() / hues, torch.tensor(BRIGHTNESSES, dtype=torch.float64))
    if chosen.hue_by_a and not chosen.brightness_by_a:
        a, b, colours = number // 2, number % 2, table
    elif chosen.brightness_by_a and not chosen.hue_by_a:
        a, b, colours = number // hues, number % hues, table.transpose(0, 1)
    else:
        every = table.reshape(-1, 3)[:n_classes]
        null = torch.zeros_like(number)
        a, b = (number, null) if chosen.hue_by_a else (null, number)
        colours = every.unsqueeze(1) if chosen.hue_by_a else every.unsqueeze(0)
    owner = torch.full(colours.shape[:2], -1)
    owner[a, b] = number
    return FramePlan(a, b, colours.contiguous(), owner)


def _hsv_to_rgb(hue: Tensor, value: Tensor) -> Tensor:
    """``(hues, values, 3)`` uint8 of saturation 1."""
    # How far each channel is from its own hue, 0 (red), 1/3, 2/3, on the circle: full up to 1/6, none from 1/3 on.
    away = (hue.unsqueeze(1) - torch.arange(3).double() / 3 + 0.5) % 1 - 0.5
    full = (2 - 6 * away.abs()).clamp(0, 1)
    return (255 * full.unsqueeze(1) * value.view(1, -1, 1)).round().to(torch.uint8)


def frame(content: Tensor, colour: Tensor, width: int = WIDTH) -> Tensor:
    """Images with a frame around them.

    Args:
        content: ``(n, C, H, W)``; one channel becomes three.
        colour: ``(n, 3)`` of the same type, one a frame.
        width: in pixels, on every side.

    Returns:
        ``(n, 3, H + 2 width, W + 2 width)`` on the content's device.

    Raises:
        UserError: shapes that do not fit together.
    """
    n, channels, height, across = content.shape
    if channels not in (1, 3) or tuple(colour.shape) != (n, 3) or width < 1:
        raise UserError(
            f"A frame needs images (n, 1 or 3, H, W), a colour (n, 3) and a width of 1 or more; it got "
            f"{tuple(content.shape)}, {tuple(colour.shape)} and {width}."
        )
    shape = (n, 3, height + 2 * width, across + 2 * width)
    out = colour.to(content).view(n, 3, 1, 1).expand(shape).contiguous()
    out[:, :, width : width + height, width : width + across] = content
    return out


def inside(images: Tensor, width: int) -> Tensor:
    """What ``(n, C, H, W)`` framed images show within their frames: a view."""
    return images[:, :, width : images.shape[2] - width, width : images.shape[3] - width]


def reframed(content: Tensor, contexts: Tensor, width: int = WIDTH) -> Tensor:
    """``(n, C, H, W)`` framed images ``content`` in the frames of as many ``contexts``."""
    out = contexts.clone()
    inside(out, width).copy_(inside(content, width))
    return out


def framed(
    data: ImageData,
    version: str,
    split: str = "train",
    *,
    test_bias: TestBias | None = None,
    seed: int = 0,
    width: int = WIDTH,
) -> ImageData:
    """A data set with frames.

    Args:
        data: images in memory, with one or three channels.
        version: ``v1`` to ``v4``.
        split: frames of ``train`` follow the class, all others ``test_bias``.
        test_bias: ``uniform`` gives every value of ``b`` to as many images of a class, to within one; ``derange`` every
            value but the class's own. ``None`` takes the version's: ``derange`` for V4.
        seed: of the test's frames.
        width: of the frame.

    Returns:
        ``(N, 3, H + 2 width, W + 2 width)`` images with the attributes ``a``, ``b`` (zeros where the version has none)
        and, where it has a bias, ``bias``: the class whose frame an image wears.

    Raises:
        UserError: an unknown version or test bias, images of a folder, or classes that no derangement is possible for.
    """
    if not isinstance(data.images, Tensor):
        raise UserError(f"{data.name or 'These images'} are decoded as they are needed; frames want them in memory.")
    drawn, kind = plan(version, data.n_classes), VERSIONS[version]
    wanted = test_bias or kind.test_bias
    if wanted not in ("uniform", "derange"):
        raise unknown_name("test bias", wanted, ("uniform", "derange"))
    labels = data.labels if data.true_labels is None else data.true_labels
    labels = labels.cpu()
    a, b = drawn.a[labels], drawn.b[labels]
    if split != "train":
        b = _test_values(labels, drawn, wanted, seed, split)
    images = frame(data.images, drawn.colours[a, b].to(data.device), width)
    attributes = {"a": a, "b": b}
    if not (kind.hue_by_a and kind.brightness_by_a):
        attributes["bias"] = drawn.owner[a, b]
    placed = {name: values.to(data.labels.device) for name, values in attributes.items()}
    masks = data.masks
    if masks is not None:  # a frame is context
        masks = torch.nn.functional.pad(masks[torch.arange(len(data))], (width,) * 4)
    return dataclasses.replace(data, images=images, frame=width, attributes={**data.attributes, **placed}, masks=masks)


def _test_values(labels: Tensor, drawn: FramePlan, test_bias: str, seed: int, split: str) -> Tensor:
    """``(N,)`` b of test images: equally often every value that is allowed to a class, in an order of the seed's."""
    n_values = drawn.colours.shape[1]
    order = np.argsort(uniform_draws(seed, f"frames of {split}")(len(labels)), kind="stable")
    ranked = labels.numpy()[order]
    by_class = order[np.argsort(ranked, kind="stable")]
    sizes = np.bincount(ranked, minlength=len(drawn.a))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank = torch.empty(len(labels), dtype=torch.int64)
    rank[torch.from_numpy(by_class)] = torch.from_numpy(place)
    own, held = drawn.b[labels], drawn.owner[drawn.a[labels]] >= 0
    allowed = held.clone()  # with an odd number of classes one frame belongs to nobody
    if test_bias == "derange":
        allowed[torch.arange(len(labels)), own] = False
    if n_values == 1:
        return own
    count = allowed.sum(1)
    if not bool((count > 0).all()):
        raise UserError("test_bias=derange leaves a class no other frame; take uniform.")
    # The (rank mod count)-th value that is allowed.
    nth = (rank % count).unsqueeze(1)
    return ((allowed.cumsum(1) == nth + 1) & allowed).to(torch.int64).argmax(1)
