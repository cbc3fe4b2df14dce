"""A classifier of two images: a branch for each, their embeddings side by side, one last layer (Qin et al., 2023)."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from recdenoise.errors import UserError

CONTENT, CONTEXT = "content", "context"
_BLOCK = re.compile(r"layer\d+")


class DoubleBranch(nn.Module):
    """Two encoders and a Linear (Fig. 4b).

    Args:
        content: encoder of the first image, to ``(n, D)``.
        context: encoder of the second.
        width: D.
        n_classes: outputs.
    """

    def __init__(self, content: nn.Module, context: nn.Module, width: int, n_classes: int) -> None:
        super().__init__()
        self.content, self.context = content, context
        self.fc = nn.Linear(2 * width, n_classes)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, 2 C, H, W)``: the content's channels, then the context's."""
        content, context = pairs.chunk(2, dim=1)
        return self.fc(torch.cat([self.content(content).flatten(1), self.context(context).flatten(1)], dim=1))


def high_blocks(encoder: nn.Module, count: int) -> tuple[str, ...]:
    """Names of an encoder's last ``count`` residual stages, ``layer3`` and ``layer4`` of ResNet-18, 34 and 50 for two.

    Raises:
        UserError: the encoder has fewer children called ``layer1``, ``layer2`` and so on.
    """
    blocks = [name for name, _ in encoder.named_children() if _BLOCK.fullmatch(name)]
    if not 1 <= count <= len(blocks):
        has = ", ".join(name for name, _ in encoder.named_children()) or "no parts"
        raise UserError(
            f"train_blocks is {count}, but {type(encoder).__name__} has {len(blocks)} blocks called layer1, layer2 and "
            f"so on (its parts: {has}); take a ResNet, or 0 to train all of it."
        )
    return tuple(blocks[-count:])
