"""Content and context of an image (Qin et al., 2023, Eq. 8): a mask that is 1 on the object and 0 around it.

Three kinds: a known pattern, such as a frame; a detector, the built-in one or any function of images; and masks on
disk, which travel with the data (:attr:`vision.data.ImageData.masks`). Each can be used alone: :func:`split` gives both
parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from recdenoise.errors import UserError, unknown_name
from vision.saliency import boundary_contrast

Detector = Callable[[Tensor], Tensor]
"""From ``(n, C, H, W)`` floats of 0 to 1 to ``(n, 1, H, W)`` or ``(n, H, W)`` numbers of 0 to 1, above 0.5 on the
object; without gradients, on the device of the images."""
Fill = Literal["blank", "mean"]

PATTERN, PRECOMPUTED = "pattern", "precomputed"
OWN = ("saliency", PATTERN, PRECOMPUTED)
"""Names of the library's own splitters."""
_DETECTORS: dict[str, Detector] = {"saliency": boundary_contrast}


def names() -> list[str]:
    """Every name of a splitter."""
    return [*_DETECTORS, PATTERN, PRECOMPUTED]


def register(name: str) -> Callable[[Detector], Detector]:
    """Make a function of images known as a splitter, also to the command line through ``--plugin``.

    Under a name that was registered before, the new function takes the old one's place.

    Raises:
        UserError: the name is one of the library's own.

    Example:
        >>> @register("bright")
        ... def bright(images):
        ...     return (images.mean(1) > 0.5).float()
    """

    def known(detector: Detector) -> Detector:
        if name in OWN:
            raise UserError(f"The library has a splitter called {name}; take another name.")
        _DETECTORS[name] = detector
        return detector

    return known


def detector(name: str) -> Detector:
    """A registered detector by name. Raises ``UserError`` for an unknown one."""
    if name not in _DETECTORS:
        raise unknown_name("splitter", name, names())
    return _DETECTORS[name]


@torch.no_grad()
def detect(name: str, images: Tensor) -> Tensor:
    """``(n, 1, H, W)`` uint8 masks of ``(n, C, H, W)`` uint8 images by a registered detector.

    Raises:
        UserError: the detector gives something that is no mask of these images.
    """
    return as_masks(detector(name)(images.float() / 255), images, name)


def as_masks(found: Tensor, images: Tensor, name: str) -> Tensor:
    """What a detector gave as uint8 masks. Raises ``UserError`` for another shape or numbers outside 0 to 1."""
    n, _, height, width = images.shape
    if not isinstance(found, Tensor) or tuple(found.shape) not in ((n, 1, height, width), (n, height, width)):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"The splitter {name} gave {shape} for {n} images of {height} x {width}; it must give ({n}, 1, {height}, "
            f"{width}), the share of content in every pixel."
        )
    masks = found.detach().view(n, 1, height, width).float()
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise UserError(
            f"The splitter {name} gave numbers from {masks.min().item():g} to {masks.max().item():g}; they must be 0 "
            "(context) to 1 (content)."
        )
    return (masks * 255).round_().to(torch.uint8)


def frame(height: int, width: int, pixels: int, device: torch.device | str = "cpu") -> Tensor:
    """``(1, 1, H, W)`` floats: 0 on a frame of ``pixels``, 1 inside. Raises ``UserError`` where nothing is inside."""
    if pixels < 1 or 2 * pixels >= min(height, width):
        raise UserError(
            f"Option 'frame' is {pixels}; images of {height} x {width} can have one of 1 to "
            f"{(min(height, width) - 1) // 2} pixels."
        )
    mask = torch.zeros((1, 1, height, width), device=device)
    mask[:, :, pixels : height - pixels, pixels : width - pixels] = 1.0
    return mask


def split(images: Tensor, masks: Tensor, fill: Fill = "blank") -> tuple[Tensor, Tensor]:
    """Content and context of ``(n, C, H, W)`` float images, both of that shape (Eq. 8).

    Args:
        images: normalised, so that 0 is the data's mean colour.
        masks: ``(n, 1, H, W)`` or ``(1, 1, H, W)``, 1 on the content; between 0 and 1 a pixel belongs to both in part.
        fill: what the other part's pixels become: 0, or, with ``mean``, the mean of the pixels that are left.
    """
    return _part(images, masks, fill), _part(images, 1 - masks, fill)


def _part(images: Tensor, masks: Tensor, fill: Fill) -> Tensor:
    kept = images * masks
    if fill == "blank":
        return kept
    mean = kept.sum((2, 3), keepdim=True) / masks.sum((2, 3), keepdim=True).clamp_min(1e-6)
    return kept + (1 - masks) * mean


def paste(content: Tensor, context: Tensor, masks: Tensor) -> Tensor:
    """``masks * content + (1 - masks) * context``: a content before another image's context, exact where masks are 0
    or 1."""
    return torch.lerp(context, content, masks)
