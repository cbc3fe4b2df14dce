"""What several methods share: a pull of a batch's mean prediction to known class shares, and moments of training."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def balance_loss(logits: Tensor, prior: Tensor) -> Tensor:
    """``KL(prior || mean over the batch of softmax)``, a scalar: predictions of one class alone cost much.

    Args:
        logits: ``(n, C)``.
        prior: ``(C,)`` shares of the classes, summing to 1.

    Source: Tanaka et al., *Joint Optimization Framework for Learning with Noisy Labels* (CVPR 2018), L_p.
    """
    log_p = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    mean = torch.logsumexp(log_p, dim=0) - math.log(len(logits))
    return (torch.xlogy(prior, prior) - prior * mean).sum()


def moment(value: float, epochs: int) -> int:
    """A zero-based epoch of a stage of ``epochs``: ``value`` itself, or that share of them where it is below 1.

    At least 1, as nothing is known before the first epoch.
    """
    return max(1, round(value * epochs if value < 1 else value))
