"""Formulas on tensors: one function each, no state, no I/O.

Every function takes logits, because every log of a probability is taken from a logit (``softplus``, ``log_softmax``)
and never from a rounded probability. ``(n,)`` logits are binary (class 1 is "positive"); ``(n, C)`` logits are
multi-class. Results are per example and unreduced.

Sources: DeCA is Wang et al., *Label Denoising through Cross-Model Agreement* (ACM TORS 2023); T-CE and R-CE are Wang et
al., *Denoising Implicit Feedback for Recommendation* (WSDM 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy with the observed label.

    Args:
        logits: ``(n,)`` binary or ``(n, C)`` multi-class logits.
        label: ``(n,)``; 0/1 floats for binary logits, int64 classes otherwise.

    Returns:
        ``(n,)`` losses in nats.
    """
    if logits.dim() == 1:
        return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, label, reduction="none")


def observed_probability(logits: Tensor, label: Tensor) -> Tensor:
    """Probability that a model gives to the observed label (DeCA Eq. 11), shape ``(n,)``."""
    if logits.dim() == 1:
        return torch.sigmoid(torch.where(label > 0.5, logits, -logits))
    return torch.softmax(logits, dim=-1).gather(1, label.unsqueeze(1)).squeeze(1)


def reweighting(logits: Tensor, label: Tensor, alpha: float) -> Tensor:
    """R-CE weight: the detached probability of the observed label to the power ``alpha``.

    That is ``p ** alpha`` for positives and ``(1 - p) ** alpha`` for negatives. ``alpha = 0`` gives ones.

    Returns:
        ``(n,)`` weights in [0, 1], without gradient.
    """
    return observed_probability(logits.detach(), label).pow(alpha)


def truncation(loss: Tensor, label: Tensor, drop_rate: float) -> Tensor:
    """T-CE weight: zero for the share ``drop_rate`` of examples with the largest ``loss * label``, else ``n / kept``.

    Only positives are ever dropped; the scale makes a plain mean over the batch the mean over what is kept.

    Args:
        loss: ``(n,)`` losses, detached inside.
        label: ``(n,)`` 0/1 labels.
        drop_rate: share of all ``n`` examples, in [0, 1).

    Returns:
        ``(n,)`` weights, without gradient.
    """
    n = loss.shape[0]
    weight = torch.ones_like(loss)
    n_drop = int(drop_rate * n)
    if n_drop == 0:
        return weight
    value, index = torch.topk(loss.detach() * label, n_drop, sorted=False)
    dropped = value > 0  # zero is a negative (or a perfect positive): never dropped
    weight[index] = (~dropped).to(weight.dtype)
    return weight * (n / weight.sum())


def truncation_rate(step: int, growth_steps: float, maximum: float, exponent: float = 1.0) -> float:
    """T-CE drop rate ``min(maximum * (step / growth_steps) ** exponent, maximum)``."""
    if growth_steps <= 0:
        return maximum
    return min(maximum * (step / growth_steps) ** exponent, maximum)


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) of two Bernoulli distributions, in nats, shape ``(n,)``.

    ``p (a - b) - softplus(a) + softplus(b)`` with logits a, b: the log terms of the definition collapse to it.
    """
    return torch.sigmoid(p_logits) * (p_logits - q_logits) - F.softplus(p_logits) + F.softplus(q_logits)


def agreement(target: Tensor, other: Tensor, alpha: float) -> Tensor:
    """DeCA's cross-model term ``alpha KL(other || target) + (1 - alpha) KL(target || other)`` (Eq. 9).

    Args:
        target: ``(n,)`` logits of the target model f.
        other: ``(n,)`` logits of the auxiliary model g (DeCA) or of the prior (DeCA(p)).
        alpha: in [0, 1].

    Returns:
        ``(n,)`` values, zero where the two models agree.
    """
    if alpha == 1.0:
        return bernoulli_kl(other, target)
    if alpha == 0.0:
        return bernoulli_kl(target, other)
    return alpha * bernoulli_kl(other, target) + (1.0 - alpha) * bernoulli_kl(target, other)


def denoise_positives(target: Tensor, h: Tensor, label: Tensor, c_1: float) -> Tensor:
    """Minus the expected log-likelihood in a DP step (Eq. 22, k = 0).

    Positives give ``-(1 - p) log h``; negatives give ``-(1 - p) log(1 - h) + c_1 p``, where h = P(y~ = 1 | y = 0).

    Args:
        target: ``(n,)`` logits of f; ``p`` is their sigmoid.
        h: ``(n,)`` logits of h.
        label: ``(n,)`` observed 0/1 labels.
        c_1: stands for ``-log P(y~ = 0 | y = 1)``, a large positive number.

    Returns:
        ``(n,)`` values to minimise.
    """
    p = torch.sigmoid(target)
    return (1.0 - p) * F.softplus((1.0 - 2.0 * label) * h) + p * (c_1 * (1.0 - label))


def denoise_negatives(target: Tensor, h_prime: Tensor, label: Tensor, c_2: float) -> Tensor:
    """Minus the expected log-likelihood in a DN step (Eq. 22, k = 1).

    Positives give ``-p log h' + c_2 (1 - p)``; negatives give ``-p log(1 - h')``, where h' = P(y~ = 1 | y = 1).

    Args:
        target: ``(n,)`` logits of f; ``p`` is their sigmoid.
        h_prime: ``(n,)`` logits of h'.
        label: ``(n,)`` observed 0/1 labels.
        c_2: stands for ``-log P(y~ = 1 | y = 0)``, a large positive number.

    Returns:
        ``(n,)`` values to minimise.
    """
    p = torch.sigmoid(target)
    return p * F.softplus((1.0 - 2.0 * label) * h_prime) + (1.0 - p) * (c_2 * label)


def true_positive_posterior(target: Tensor, h: Tensor, h_prime: Tensor) -> Tensor:
    """P(y = 1 | y~ = 1) = h' f / (h' f + h (1 - f)) (Eq. 25), shape ``(n,)``, from logits."""
    positive = F.logsigmoid(h_prime) + F.logsigmoid(target)
    negative = F.logsigmoid(h) + F.logsigmoid(-target)
    return torch.sigmoid(positive - negative)


def mean_probability_logits(logits: Tensor) -> Tensor:
    """Logits of the mean probability of several models, in log space so that nothing saturates.

    Args:
        logits: ``(members, ...)`` binary logits.

    Returns:
        ``(...)`` logits whose sigmoid is the mean of the members' sigmoids.
    """
    return torch.logsumexp(F.logsigmoid(logits), dim=0) - torch.logsumexp(F.logsigmoid(-logits), dim=0)


PAPER_CODE_EPSILON = 1e-5
"""What the DeCA authors' public code adds inside every logarithm."""


def paper_code_log(logits: Tensor) -> Tensor:
    """``log(sigmoid(logits) + 1e-5)``, as the DeCA authors' public code computes it (``compat: paper_code``)."""
    return torch.log(torch.sigmoid(logits) + PAPER_CODE_EPSILON)


def paper_code_agreement(target: Tensor, other: Tensor, alpha: float) -> Tensor:
    """:func:`agreement` with the public code's logarithms."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        p = torch.sigmoid(a)
        return p * (paper_code_log(a) - paper_code_log(b)) + (1 - p) * (paper_code_log(-a) - paper_code_log(-b))

    return alpha * kl(other, target) + (1.0 - alpha) * kl(target, other)


def paper_code_denoise(target: Tensor, h: Tensor, h_prime: Tensor, label: Tensor, branch: str, c: float) -> Tensor:
    """The public code's three branches of ``-E``: ``dp``, ``dn`` and ``mixed``.

    ``mixed`` is the branch that its very first step (and every step of its non-iterative runs) takes: the formula of
    the negatives, without a constant, for positives and negatives alike.
    """
    p, sign = torch.sigmoid(target), 2.0 * label - 1.0
    if branch == "dp":
        return -(1.0 - p) * paper_code_log(sign * h) + p * (c * (1.0 - label))
    if branch == "dn":
        return -p * paper_code_log(sign * h_prime) + (1.0 - p) * (c * label)
    return -(1.0 - p) * paper_code_log(-h) - p * paper_code_log(-h_prime)
