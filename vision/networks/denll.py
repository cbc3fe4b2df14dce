"""DeNLL's network: foreground and background of an image, an encoder of each, and two heads that exchange features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision.heads import Headed, answer
from vision.networks.interaction import ClassBackgroundMemory, DebiasedInteraction, GivenBackground
from vision.networks.localization import Cut, GaussianLocalization, box_mask


class Parts(NamedTuple):
    """What the network makes of images, in order.

    Attributes:
        mask: ``(n or 1, 1, H, W)`` float32; the fixed box is the same for all images.
        foreground, background: ``(n, C, H, W)``, what the encoders see.
        z_f, z_b: ``(n, D)``, their embeddings.
        o1, o2: ``(n, classes)`` logits; without the interaction module there is no second, and ``o2`` is ``None``.
        representation: ``(n, D)``, of the whole image: (v1 + v2) / 2, or u1 without the interaction module.
    """

    mask: Tensor
    foreground: Tensor
    background: Tensor
    z_f: Tensor
    z_b: Tensor
    o1: Tensor
    o2: Tensor | None
    representation: Tensor


class DeNLLNetwork(Headed):
    """Two encoders of the host's backbone between a mask and two heads; called like any classifier.

    Args:
        foreground: encoder from ``(n, C, H, W)`` to ``(n, D)``.
        background: the other one; ``None`` shares the first.
        width: D.
        n_classes: outputs.
        in_channels: C.
        cut: from image and mask to foreground and background.
        use_lm: find the mask by :class:`GaussianLocalization`; otherwise it is the fixed box.
        use_dim: predict by :class:`DebiasedInteraction`; otherwise by :class:`GivenBackground`.
        momentum: of the class-background memory.
        gather: every process's part of a batch, put together; the identity in one process.
    """

    def __init__(
        self,
        foreground: nn.Module,
        background: nn.Module | None,
        width: int,
        n_classes: int,
        in_channels: int,
        cut: Cut,
        *,
        use_lm: bool = True,
        use_dim: bool = True,
        momentum: float = 0.99,
        gather: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        super().__init__()
        self.cut = cut
        self.localization = GaussianLocalization(in_channels) if use_lm else None
        self.encoder = foreground
        self.background_encoder = background
        self.memory = ClassBackgroundMemory(n_classes, width, momentum) if use_dim else None
        self.interaction = DebiasedInteraction(width, n_classes) if use_dim else GivenBackground(width, n_classes)
        self._gather = gather

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The encoders by attribute: one where it is shared."""
        named = {"encoder": self.encoder, "background_encoder": self.background_encoder}
        return {name: encoder for name, encoder in named.items() if encoder is not None}

    @property
    def background_place(self) -> str:
        """Attribute of the encoder that embeds backgrounds."""
        return list(self.encoders)[-1]

    def mask(self, images: Tensor) -> Tensor:
        """``(n, 1, H, W)`` float32 masks of ``(n, C, H, W)`` images, or ``(1, 1, H, W)``: the box for all of them."""
        return box_mask(images) if self.localization is None else self.localization(images)

    def embeddings(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """z_f and z_b, ``(n, D)`` each; a shared encoder takes both in one forward."""
        if self.background_encoder is None:
            both = self.encoder(torch.cat([foreground, background])).flatten(1)
            z_f, z_b = both.chunk(2)
            return z_f, z_b
        return self.encoder(foreground).flatten(1), self.background_encoder(background).flatten(1)

    def embed_background(self, images: Tensor) -> Tensor:
        """z_b ``(n, D)`` alone, in float32."""
        background = self.cut(images, self.mask(images))[1]
        encoder = self.encoder if self.background_encoder is None else self.background_encoder
        return encoder(background).flatten(1).float()

    def parts(self, images: Tensor, observed: Tensor | None = None) -> Parts:
        """Everything on the way from ``(n, C, H, W)`` images to the logits; ``observed`` as in :meth:`heads`."""
        mask = self.mask(images)
        foreground, background = self.cut(images, mask)
        z_f, z_b = self.embeddings(foreground, background)
        if self.memory is None:
            (o1,), representation = self.interaction(z_f, z_b)
            return Parts(mask, foreground, background, z_f, z_b, o1, None, representation)
        if observed is not None:
            self.memory.update(self._gather(z_b.detach().float()), self._gather(observed))
        (o1, o2), representation = self.interaction(z_f, z_b, self.memory())
        return Parts(mask, foreground, background, z_f, z_b, o1, o2, representation)

    def heads(self, images: Tensor, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        """o1 and o2, ``(n, classes)`` each, from one forward; o1 alone without the interaction module.

        Args:
            images: ``(n, C, H, W)``.
            observed: ``(n,)`` int64 observed labels, which move the memory; -1 marks mixed images. ``None`` moves
                nothing, and the prediction needs none.
        """
        parts = self.parts(images, observed)
        return (parts.o1,) if parts.o2 is None else (parts.o1, parts.o2)

    def embedded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.parts(images)
        heads = (parts.o1,) if parts.o2 is None else (parts.o1, parts.o2)
        return answer(heads), parts.representation

    def places(self, layer: str) -> tuple[str, ...]:
        return tuple(f"{name}.{layer}" for name in self.encoders)

    def head_places(self) -> tuple[str, ...]:
        return ("interaction",)
