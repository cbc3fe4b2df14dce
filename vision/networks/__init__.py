"""Networks by name, each with logits from its last ``nn.Linear``.

``resnet18`` alone is no name: with the stem for small images it is ``resnet18_small``, with the one for large images
``torchvision:resnet18``. Taking one for the other costs many points of accuracy and raises no error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from recdenoise.errors import UserError, unknown_name
from vision.networks.cifar_resnet import CifarResNet
from vision.networks.plain import CNN9, MLP, MLP16, MLP100, ConvNet2
from vision.networks.pretrained import PREFIX, load_weights, torchvision_network
from vision.networks.resnet import Basic, Bottleneck, PreAct, ResNet
from vision.networks.small_inception import SmallInception

__all__ = ["NETWORKS", "Network", "build", "load_weights", "names", "parameters"]


@dataclass(frozen=True)
class Network:
    """An entry of the table.

    Attributes:
        build: from ``n_classes``, ``in_channels``, perhaps ``image_size`` and options to the network.
        text: what it is, in a few words.
        sized: whether it is built for one image size.
    """

    build: Callable[..., nn.Module]
    text: str
    sized: bool = False


def _cifar(depth: int) -> Network:
    return Network(partial(CifarResNet, depth), f"ResNet-{depth} for 32 x 32, shortcuts A (option shortcut=B)")


def _small(block: Any, depths: tuple[int, int, int, int], text: str) -> Network:
    return Network(partial(ResNet, block, depths), text)


NETWORKS: dict[str, Network] = {
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56)},
    "resnet18_small": _small(Basic, (2, 2, 2, 2), "ResNet-18, 3x3 stem"),
    "resnet34_small": _small(Basic, (3, 4, 6, 3), "ResNet-34, 3x3 stem"),
    "resnet50_small": _small(Bottleneck, (3, 4, 6, 3), "ResNet-50, 3x3 stem"),
    "preact18": _small(PreAct, (2, 2, 2, 2), "PreAct ResNet-18, 3x3 stem (option final_norm)"),
    "preact34": _small(PreAct, (3, 4, 6, 3), "PreAct ResNet-34, 3x3 stem (option final_norm)"),
    "cnn9": Network(CNN9, "9-layer CNN of Co-teaching"),
    "inception_small": Network(SmallInception, "small Inception of Zhang et al., for Figure 2"),
    "convnet2": Network(ConvNet2, "two convolutions, no norm, for Figure 2", sized=True),
    "mlp": Network(MLP, "four Linears, no norm, for Figure 2", sized=True),
    "mlp100": Network(MLP100, "hidden layers of 100, 100, 100, for Colored MNIST (LfF)", sized=True),
    "mlp100_code": Network(
        partial(MLP100, divisor=255.0), "mlp100 on images divided by 255 twice, as LfF's code does", sized=True
    ),
    "mlp16_code": Network(
        partial(MLP16, divisor=255.0), "mlp16 on images divided by 255 twice, as DFA's code does", sized=True
    ),
    "mlp16": Network(MLP16, "hidden layers of 100, 100, 16, for Colored MNIST (DFA)", sized=True),
}
"""Every network by name."""


def names() -> list[str]:
    """Names that :func:`build` takes; ``torchvision:NAME`` besides, for every classifier of torchvision."""
    return list(NETWORKS)


def build(
    name: str,
    n_classes: int,
    in_channels: int = 3,
    *,
    image_size: int | tuple[int, int] | None = None,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with weights from the global generator.

    Args:
        name: see :func:`names`.
        n_classes: outputs, at least 2.
        in_channels: channels of the images.
        image_size: side, or height and width, of the images, which ``mlp`` and ``convnet2`` are built for; others take
            any. ``None``: 28 for one channel, else 32.
        weights: a file of weights to begin with; see :func:`load_weights`.
        **options: of the network: ``shortcut``, ``final_norm``, ``dropout``, ...

    Returns:
        A module from ``(n, in_channels, H, W)`` floats to ``(n, n_classes)`` logits.

    Raises:
        UserError: unknown name or option, a size that is none, or weights that do not fit.
    """
    for what, value, least in (("classes", n_classes, 2), ("channels", in_channels, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"The number of {what} is {value!r}; it must be a whole number, {least} or more.")
    if name.startswith(PREFIX):
        if options:
            raise unknown_name(f"option of {name}:", next(iter(options)), ["weights"])
        model = torchvision_network(name.removeprefix(PREFIX), n_classes, in_channels)
    else:
        model = _own(name, n_classes, in_channels, image_size, options)
    if weights is not None:
        load_weights(model, weights)
    return model


def _own(
    name: str, n_classes: int, in_channels: int, image_size: int | tuple[int, int] | None, options: dict[str, Any]
) -> nn.Module:
    if name not in NETWORKS:
        raise _no_network(name)
    network = NETWORKS[name]
    given = {"n_classes": n_classes, "in_channels": in_channels}
    allowed = set(inspect.signature(network.build).parameters) - {*given, "image_size"}
    if not name.startswith("preact"):
        allowed -= {"final_norm"}
    for option in options:
        if option not in allowed:
            raise unknown_name(f"option of {name}:", option, allowed or {"none"})
    if options.get("shortcut", "A") not in ("A", "B"):
        raise UserError(f"Option 'shortcut' is {options['shortcut']!r}; it must be A or B.")
    if network.sized:
        if image_size is None:
            image_size = 28 if in_channels == 1 else 32
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or min(size) < 4:
            raise UserError(f"The image size is {image_size!r}; it must be height and width, at least 4 pixels each.")
        options = {**options, "image_size": size}
    return network.build(**given, **options)


def _no_network(name: str) -> UserError:
    if f"{name}_small" in NETWORKS:
        return UserError(
            f"Say which {name}: {name}_small has a 3x3 stem, for images of about 32 x 32; {PREFIX}{name} has the 7x7 "
            "stem, for images of about 224 x 224."
        )
    error = unknown_name("network", name, NETWORKS)
    return UserError(f"{error} Or {PREFIX}NAME, for a network of torchvision.")


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(each.numel() for each in module.parameters())
