"""What several methods share: a pull of a batch's mean prediction to known class shares."""

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


def balance_of_mean(mean: Tensor, prior: Tensor) -> Tensor:
    """``KL(prior || mean)`` of a mean prediction ``(C,)`` of any kind; an entry counts as 1e-4 at least."""
    return (torch.xlogy(prior, prior) - prior * mean.clamp(1e-4, 1.0).log()).sum()
