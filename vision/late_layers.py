"""Which layers of a network are late: what early stopping treats apart, as they are the first to memorise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from recdenoise.errors import UserError
from vision.heads import Headed, head_places, layer_places
from vision.networks.plain import CNN9, MLP, ConvNet2
from vision.networks.small_inception import SmallInception

CHAINS = (nn.Sequential, CNN9, ConvNet2, MLP, SmallInception)
"""Networks that run their parts one after the other, in the order in which they hold them."""


@dataclass(frozen=True)
class Layers:
    """Parts of a network by their dotted names; together they hold all of its parameters.

    Attributes:
        early: what comes first.
        late: the last layers before the last one; none where a network has but two layers.
        head: the last layer; everything after the embedding where there are several heads.
    """

    early: tuple[str, ...]
    late: tuple[str, ...]
    head: tuple[str, ...]


def split_layers(network: nn.Module, n_classes: int, late: Sequence[str] | None = None, option: str = "late") -> Layers:
    """Split a network for progressive early stopping.

    Without ``late`` the late layers are the last stage of a network with parts ``layer1``, ``layer2``, ... (ResNets of
    this library, of torchvision and of timm) and what follows it, or the last layer with weights before the head in a
    plain chain of layers, as far as another one is before it.

    Args:
        network: any; of one with several heads ``late`` names layers of its backbone, in each where it has several.
        n_classes: outputs.
        late: dotted names of the late layers; empty for none.
        option: that names them, for messages.

    Raises:
        UserError: a layer that is not there, or late layers that cannot be told.
    """
    head = head_places(network, n_classes, option)
    if late is None:
        names = _automatic(network, head, option)
    else:
        names = tuple(place for layer in late for place in layer_places(network, layer, option))
    inside = [name for name in names if any(_within(name, other) or _within(other, name) for other in head)]
    if inside:
        raise UserError(f"Option {option!r} names {inside[0]}, which is or holds the last layer; name what is before.")
    early = tuple(_others(network, {*names, *head}))
    if not early:
        raise UserError(f"Option {option!r} leaves no layer of {type(network).__name__} that stays: name fewer layers.")
    return Layers(early, names, head)


def _automatic(network: nn.Module, head: tuple[str, ...], option: str) -> tuple[str, ...]:
    if not isinstance(network, Headed):
        return _late(network, head, option)
    probe = "layer"
    backbones = dict.fromkeys(place.removesuffix(probe).rstrip(".") for place in network.places(probe))
    return tuple(
        f"{backbone}.{name}" if backbone else name
        for backbone in backbones
        for name in _late(network.get_submodule(backbone), head if not backbone else (), option)
    )


def _late(network: nn.Module, head: tuple[str, ...], option: str) -> tuple[str, ...]:
    parts = [name for name, part in network.named_children() if _has_parameters(part) and name not in head]
    stages = [name for name in parts if re.fullmatch(r"layer\d+", name)]
    if stages:
        return tuple(parts[parts.index(stages[-1]) :])
    if not isinstance(network, CHAINS):
        raise UserError(
            f"PES cannot tell which layers of {type(network).__name__} are late: name them by option {option!r}, for "
            f"example {option}: [{parts[-1] if parts else 'layer4'}]; its parts are {', '.join(parts) or 'none'}."
        )
    links = [(name, part) for name, part in _links(network) if _has_parameters(part) and name not in head]
    weighted = [at for at, (_, part) in enumerate(links) if any(p.ndim > 1 for p in part.parameters())]
    return tuple(name for name, _ in links[weighted[-1] :]) if len(weighted) > 1 else ()


def _links(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a chain in order, chains inside it opened."""
    for name, part in network.named_children():
        if isinstance(part, nn.Sequential) and type(part) is nn.Sequential:
            yield from _links(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def _others(network: nn.Module, named: set[str], prefix: str = "") -> Iterator[str]:
    """The largest parts with parameters that hold nothing of what is named."""
    for name, part in network.named_children():
        place = f"{prefix}{name}"
        if place in named or not _has_parameters(part):
            continue
        if any(_within(other, place) for other in named):
            yield from _others(part, named, f"{place}.")
        else:
            yield place


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _has_parameters(part: nn.Module) -> bool:
    return next(part.parameters(), None) is not None
