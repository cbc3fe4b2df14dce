"""Networks that answer through several heads, and where a layer of the backbone lies inside them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recdenoise.errors import UserError, unknown_name
from vision.embedding import head_name


def answer(heads: Sequence[Tensor]) -> Tensor:
    """The log of the mean of the heads' softmaxes, ``(n, C)``; a single head's logits stay as they are.

    Args:
        heads: logits ``(n, C)`` of each head.
    """
    if len(heads) == 1:
        return heads[0]
    logs = torch.stack([torch.log_softmax(head.float(), dim=1) for head in heads])
    return torch.logsumexp(logs, dim=0) - math.log(len(heads))


class Headed(nn.Module, ABC):
    """Base of networks with several heads: called like any classifier, it gives the answer of all heads together.

    A subclass writes :meth:`heads`; :meth:`embedded`, for what reads representations; and, where it is built around
    backbones, the two methods that say where their layers are.
    """

    @abstractmethod
    def heads(self, images: Tensor, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits ``(n, C)`` of every head, from one forward.

        Args:
            images: ``(n, C, H, W)``.
            observed: ``(n,)`` int64 observed labels, for networks that remember something by label; -1 marks a row that
                has none of its own, a mixed image for example. ``None`` leaves what is remembered as it is.
        """

    def forward(self, images: Tensor) -> Tensor:
        """``(n, C)`` logits: the log of the mean of the heads' softmaxes."""
        return answer(self.heads(images))

    def embedded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(n, C)`` of all heads together and the image's representation ``(n, D)``, from one forward."""
        raise UserError(f"{type(self).__name__} has no single representation to read.")

    def places(self, layer: str) -> tuple[str, ...]:
        """Dotted names, in this network, of what is called ``layer`` in the backbone."""
        return (layer,)

    def head_places(self) -> tuple[str, ...]:
        """Dotted names of everything that comes after the backbones' embeddings."""
        raise UserError(f"{type(self).__name__} does not say where its last layers are.")


@runtime_checkable
class HeadedTask(Protocol):
    """A task that can call a network head by head; :class:`vision.task.ImageTask` is one."""

    def heads(self, module: nn.Module, inputs: Any, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits ``(n, C)`` of every head of ``module``, from one forward."""
        ...


def layer_places(network: nn.Module, layer: str, option: str) -> tuple[str, ...]:
    """Dotted names, in ``network``, of a layer of its backbone: one, or one a backbone where it has several.

    Args:
        network: any network.
        layer: dotted name in the backbone, for example ``"layer4"``.
        option: that named the layer, for the message.

    Raises:
        UserError: there is no such layer.
    """
    places = network.places(layer) if isinstance(network, Headed) else (layer,)
    names = [name for name, _ in network.named_modules() if name]
    for place in places:
        if place not in names:
            raise unknown_name(f"layer (option {option!r})", place, names)
    return places


def head_places(network: nn.Module, n_classes: int, option: str) -> tuple[str, ...]:
    """Dotted names, in ``network``, of its last layer: of everything after the embedding where it has several heads.

    Args:
        network: any network.
        n_classes: outputs.
        option: that can name the last layer, for the message.

    Raises:
        UserError: it has no ``nn.Linear`` with ``n_classes`` outputs.
    """
    if isinstance(network, Headed):
        return network.head_places()
    name = head_name(network, n_classes)
    if name is None:
        raise UserError(
            f"{type(network).__name__} has no nn.Linear with {n_classes} outputs: name its last layer by option "
            f"{option!r}."
        )
    return (name,)
