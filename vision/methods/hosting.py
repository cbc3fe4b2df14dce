"""Methods that train any network, also one that answers through several heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, Losses
from recdenoise.task import Batch
from vision.heads import Headed, HeadedTask


class Host(Denoiser):
    """Base of methods whose network may have several heads.

    Training losses go through :meth:`heads` and :meth:`over_heads`; everything else (pseudo-labels, selection, scores)
    through ``task.call``, which gives the answer of all heads together.

    Class attributes:
        one_loss: one loss on the mean of the heads' logits, in place of the mean of the heads' losses.
    """

    one_loss: ClassVar[bool] = False

    def heads(self, module: nn.Module, inputs: Any, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits ``(n, C)`` of every head of ``module`` from one forward: a tuple of one for a plain network.

        Args:
            module: the network.
            inputs: ``(n, C, H, W)`` images, or what the task's networks take.
            observed: ``(n,)`` int64 observed labels of unmixed images, for networks that remember something by label;
                -1 where a row has none of its own. ``None`` where all of them are mixed.
        """
        if not isinstance(module, Headed):
            return (self.task.call(module, inputs),)
        assert isinstance(self.task, HeadedTask)
        return self.task.heads(module, inputs, observed)

    def over_heads(self, heads: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean over heads of ``loss(logits)``, or ``loss`` of the mean logits where ``one_loss`` is set.

        Args:
            heads: logits ``(n, C)`` of every head.
            loss: from logits ``(n, C)`` to losses, ``(n,)`` as a rule.
        """
        if len(heads) == 1:
            return loss(heads[0])
        if self.one_loss:
            return loss(torch.stack(tuple(heads)).mean(0))
        return torch.stack([loss(head) for head in heads]).mean(0)


class CrossEntropy(Host):
    """Cross-entropy with the observed labels, for networks of any number of heads: ``normal`` for plain ones."""

    name = "ce"
    title = "CE"
    summary = "cross-entropy with the observed labels"
    distributed = True
    paper = "the baseline of every paper on label noise"

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        heads = self.heads(self.target, batch.inputs, batch.label)
        return Losses(
            self.over_heads(heads, lambda logits: objectives.classification_loss(logits, batch.label)), batch.weight
        )
