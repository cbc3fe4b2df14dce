"""The swapping autoencoder, small: a code of structure, a code of texture, a generator and two discriminators.

Source: Park et al., *Swapping Autoencoder for Deep Image Manipulation* (NeurIPS 2020), at the size that images of 28 to
128 pixels need: fewer channels, and residual blocks where the original has StyleGAN2's.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
"""Of the leaky ReLUs."""


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution and a leaky ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(SLOPE))


def sizes_of(size: tuple[int, int], down: int) -> list[tuple[int, int]]:
    """Height and width of an image and after each of ``down`` halvings, rounded up."""
    sizes = [size]
    for _ in range(down):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class Encoder(nn.Module):
    """Images to a structure ``(n, s, h, w)`` that keeps places and a texture ``(n, t)`` that forgets them; both of
    unit length, the structure in every place.

    Args:
        channels: of the images.
        width: channels after the first convolution; they double with every halving.
        structure, texture: channels of the codes.
        down: halvings of the structure.
    """

    def __init__(self, channels: int, width: int, structure: int, texture: int, down: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(down + 1)]
        halvings = [convolution(a, b, stride=2) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(convolution(channels, width), *halvings)
        self.structure = nn.Sequential(convolution(widths[-1], widths[-1]), nn.Conv2d(widths[-1], structure, 1))
        self.texture = convolution(widths[-1], 2 * widths[-1], stride=2)
        self.last = nn.Linear(2 * widths[-1], texture)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        body = self.body(images)
        texture = self.last(self.texture(body).mean((2, 3)))
        return F.normalize(self.structure(body), dim=1), F.normalize(texture, dim=1)


class Modulated(nn.Module):
    """A 3x3 convolution whose input channels are scaled by a code, its outputs brought back to unit variance, and a
    leaky ReLU (Karras et al., CVPR 2020)."""

    def __init__(self, inputs: int, outputs: int, code: int) -> None:
        super().__init__()
        self.scale = nn.Linear(code, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / math.sqrt(9 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale = self.scale(code) + 1.0
        out = F.conv2d(x * scale[:, :, None, None], self.weight, padding=1)
        variance = scale.square() @ self.weight.square().sum((2, 3)).t()
        out = out * torch.rsqrt(variance + 1e-8)[:, :, None, None] + self.bias[:, None, None]
        return F.leaky_relu(out, SLOPE)


class Generator(nn.Module):
    """A structure and a texture to an image, doubling ``down`` times.

    Args:
        size: height and width of the image.
        channels, width, structure, texture, down: as of :class:`Encoder`.
    """

    def __init__(
        self, size: tuple[int, int], channels: int, width: int, structure: int, texture: int, down: int
    ) -> None:
        super().__init__()
        self.sizes = sizes_of(size, down)[-2::-1]
        widths = [width * 2**i for i in range(down, -1, -1)]
        self.first = nn.Conv2d(structure, widths[0], 1)
        self.middle = Modulated(widths[0], widths[0], texture)
        self.blocks = nn.ModuleList(Modulated(a, b, texture) for a, b in itertools.pairwise(widths))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, structure: Tensor, texture: Tensor) -> Tensor:
        x = self.middle(self.first(structure), texture)
        for size, block in zip(self.sizes, self.blocks, strict=True):
            x = block(F.interpolate(x, size=size, mode="bilinear", align_corners=False), texture)
        return self.last(x)


class SwappingAutoencoder(nn.Module):
    """Encoder and generator. Arguments as of both."""

    def __init__(
        self, size: tuple[int, int], channels: int, width: int, structure: int, texture: int, down: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, structure, texture, down)
        self.generator = Generator(size, channels, width, structure, texture, down)

    def forward(self, inputs: tuple[Tensor, Tensor, bool]) -> Tensor:
        """Images made of ``(content, style, rebuild)``, the first two ``(n, C, H, W)``.

        Returns:
            with ``rebuild`` ``(3n, C, H, W)``: content rebuilt, style rebuilt, and content with the texture of style;
            without it the last alone, ``(n, C, H, W)``.
        """
        content, style, rebuild = inputs
        structure, texture = self.encoder(torch.cat([content, style]))
        if rebuild:
            own, other = texture.chunk(2)
            first, second = structure.chunk(2)
            return self.generator(torch.cat([first, second, first]), torch.cat([own, other, other]))
        return self.generator(structure[: len(content)], texture[len(content) :])


class Discriminator(nn.Module):
    """Images to the logit that one is real, ``(n, 1)``."""

    def __init__(self, channels: int, width: int, down: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(down + 2)]
        halvings = [convolution(a, b, stride=2) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(convolution(channels, width), *halvings, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.last = nn.Linear(4 * widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.body(images))


class PatchDiscriminator(nn.Module):
    """The logit that a patch is of the same image as some reference patches, whose features are averaged."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, width), convolution(width, 2 * width, 2), convolution(2 * width, 4 * width, 2)
        )
        self.judge = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.LeakyReLU(SLOPE), nn.Linear(4 * width, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """``(n, k)`` logits of ``(n, 2k, C, p, p)``: k candidates, then k references, of every image."""
        n, both = patches.shape[:2]
        features = self.body(patches.flatten(0, 1)).mean((2, 3)).unflatten(0, (n, both))
        candidates, references = features.chunk(2, dim=1)
        mean = references.mean(1, keepdim=True).expand_as(candidates)
        return self.judge(torch.cat([candidates, mean], 2)).squeeze(2)


def crop(images: Tensor, points: Tensor, shares: Tensor, pixels: int) -> Tensor:
    """Square patches of images, moved inwards where they would reach over an edge.

    Args:
        images: ``(n, C, H, W)``.
        points: ``(n, k, 2)`` centres (x, y) from -1 to 1.
        shares: ``(n, k)`` sides as a share of the image's.
        pixels: side of what comes back.

    Returns:
        ``(n, k, C, pixels, pixels)``, by bilinear interpolation; gradients pass to the images.
    """
    n, k = shares.shape
    inner = torch.minimum(torch.maximum(points, shares.unsqueeze(2) - 1.0), 1.0 - shares.unsqueeze(2))
    steps = (torch.arange(pixels, device=images.device, dtype=images.dtype) + 0.5) / pixels * 2.0 - 1.0
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    offsets = torch.stack([x, y], -1) * shares[..., None, None, None].to(images.dtype)
    grid = inner[:, :, None, None].to(images.dtype) + offsets
    flat = grid.reshape(n, k * pixels, pixels, 2)  # one call: the k patches of an image below each other
    cut = F.grid_sample(images, flat, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.unflatten(2, (k, pixels)).transpose(1, 2)
