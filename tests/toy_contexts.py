"""Images, a splitter and a network for the tests of CIT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.toy_images import CLASSES, TinyImages
from vision import methods, splitters
from vision.augment import Augment
from vision.data import ImageData
from vision.methods import cit
from vision.task import ImageTask


@splitters.register("dark part")
def dark(images: Tensor) -> Tensor:
    """The content of a test's images: what is darker than a quarter; shades give shares."""
    return (1.5 - 4 * images.mean(1)).clamp(0, 1)


def data(n: int = 24, **attributes: Tensor) -> ImageData:
    drawn = TinyImages.draw(n, 0.0, 3)
    return ImageData(drawn.images, drawn.labels, CLASSES, attributes=attributes)


class TinyResNet(nn.Module):
    """Three blocks named as those of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 4, 6, 8)
        for number in (1, 2, 3):
            block = nn.Sequential(
                nn.Conv2d(widths[number - 1], widths[number], 3, padding=1), nn.BatchNorm2d(widths[number])
            )
            self.add_module(f"layer{number}", block)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.layer1, self.layer2, self.layer3):
            x = torch.relu(block(x))
        return self.fc(x.mean((2, 3)))


def task(images: ImageData) -> ImageTask:
    augment = Augment((0.4,), (0.25,), crop_pad=1)
    return ImageTask(images, new_model=lambda _: TinyResNet(), augment=augment, seed=1, batch_size=8)


def method(images: ImageData | None = None, **config: Any) -> cit.CIT:
    made = methods.get("cit")(task(images or data()), {"splitter": "dark part", **config}).train()
    assert isinstance(made, cit.CIT)
    return made


def parts(inputs: Tensor, level: float | None = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Content, context and mask of images of one channel and their masks, pixel by pixel."""
    image, mask = inputs[:, :1], inputs[:, 1:]
    if level is not None:
        mask = torch.tensor([float(v > level) for v in mask.flatten()]).view_as(mask)
    return image * mask, image * (1 - mask), mask
