"""Formulas on tensors: one function each, no state, no I/O.

Every function takes logits, because every log of a probability is taken from a logit (``softplus``, ``log_softmax``)
and never from a rounded probability. ``(n,)`` logits are binary (class 1 is "positive"); ``(n, C)`` logits are
multi-class. Results are per example and unreduced.

Sources: DeCA is Wang et al., *Label Denoising through Cross-Model Agreement* (ACM TORS 2023); T-CE and R-CE are Wang et
al., *Denoising Implicit Feedback for Recommendation* (WSDM 2021); GCE is Zhang and Sabuncu, *Generalized Cross Entropy
Loss* (NeurIPS 2018); MAE is Ghosh et al., *Robust Loss Functions under Label Noise* (AAAI 2017); ELR is Liu et al.,
*Early-Learning Regularization* (NeurIPS 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy with the observed label.

    Args:
        logits: ``(n,)`` binary or ``(n, C)`` multi-class logits.
        label: ``(n,)``; 0/1 floats for binary logits, int64 classes otherwise, or ``(n, C)`` probabilities of classes.

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


def smallest(loss: Tensor, share: float) -> Tensor:
    """Which examples are among the ``share`` with the smallest loss: ``(n,)`` booleans, at least one of them true.

    Args:
        loss: ``(n,)`` losses; ties go to the earlier example.
        share: in [0, 1]; ``round(share * n)`` examples are kept.
    """
    n = loss.shape[0]
    keep = min(n, max(1, round(share * n)))
    kept = torch.zeros(n, dtype=torch.bool, device=loss.device)
    kept[torch.sort(loss.detach(), stable=True).indices[:keep]] = True
    return kept


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
    """Logits of the mean probability of several models, in the order of the members' logits at any size of theirs.

    The mean itself does not keep that order: near 1 probabilities are all alike, and near 0.5 they hold no logit below
    1e-7, which is what a model gives to whom it never saw in training.

    Args:
        logits: ``(members, ...)`` binary logits.

    Returns:
        ``(...)`` logits whose sigmoid is the mean of the members' sigmoids.
    """
    excess = torch.tanh(logits / 2).sum(0)  # of the probabilities over their complements
    smaller = torch.sigmoid(torch.where(excess < 0, logits, -logits)).sum(0)
    value = torch.log1p(excess.abs() / smaller)
    # Where all logits are so large that single precision holds no number for the smaller sum.
    beyond = math.log(len(logits)) - torch.logsumexp(-logits.abs(), dim=0)
    return torch.where(smaller > 1e-30, value, beyond).copysign(excess)


LOG_FLOOR = math.log(1e-5)
"""Below it ``log h`` is clamped, so that one impossible label cannot pull without limit."""


def class_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) of categorical distributions (DeCA Eq. 18): ``(n, C)`` logits to ``(n,)`` nats in float32 or more."""
    log_p, log_q = _log_softmax(p_logits), _log_softmax(q_logits)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def class_agreement(target: Tensor, other: Tensor, alpha: float) -> Tensor:
    """:func:`agreement` of ``(n, C)`` logits; ``alpha = 0`` is the printed objective for images (Eq. 16)."""
    if alpha == 1.0:
        return class_kl(other, target)
    if alpha == 0.0:
        return class_kl(target, other)
    return alpha * class_kl(other, target) + (1.0 - alpha) * class_kl(target, other)


def denoise_class(target: Tensor, h_k: Tensor, label: Tensor, k: Tensor, c_1: float, c_2: float) -> Tensor:
    """Minus the expected log-likelihood of a step that attends to class ``k`` (DeCA Eq. 22).

    Labels equal to ``k`` give ``-p_k log h[k, k] + c_1 (1 - p_k)``, other labels y~ give
    ``-p_k log h[k, y~] + c_2 (1 - p_k - p_y~)``, where ``h[k, j] = P(y~ = j | y = k)``.

    Args:
        target: ``(n, C)`` logits of f; ``p`` is their softmax.
        h_k: ``(n, C)`` logits of ``P(y~ | y = k)``.
        label: ``(n,)`` int64 observed labels.
        k: the class, as a tensor of no dimension, so that a compiled step serves every class.
        c_1: stands for ``-log P(y~ = k | y != k)``.
        c_2: stands for ``-log P(y~ not in {k, y} | y != k)``.

    Returns:
        ``(n,)`` values to minimise.
    """
    p = _log_softmax(target).exp()
    p_k = p.index_select(1, k.reshape(1)).squeeze(1)
    p_label = p.gather(1, label.unsqueeze(1)).squeeze(1)
    log_h = _log_softmax(h_k).gather(1, label.unsqueeze(1)).squeeze(1).clamp_min(LOG_FLOOR)
    return torch.where(label == k, c_1 * (1.0 - p_k), c_2 * (1.0 - p_k - p_label)) - p_k * log_h


def denoise_every_class(target: Tensor, h: Tensor, label: Tensor, k: Tensor, keep_label: bool = True) -> Tensor:
    """Minus the expected log-likelihood under all conditionals, h learning only through class ``k`` (DeCA Eq. 24).

    Args:
        target: ``(n, C)`` logits of f; ``p`` is their softmax.
        h: ``(n, C, C)`` logits; ``softmax(h[:, c])`` is ``P(y~ | y = c)``.
        label: ``(n,)`` int64 observed labels.
        k: the class whose conditional learns, as a tensor of no dimension.
        keep_label: whether the term of ``c = y~`` counts where ``y~ != k``. Eq. 24 as printed leaves it out, which
            lets f fit the noise for free.

    Returns:
        ``(n,)`` values ``-sum_c p_c log h[c, y~]``.
    """
    n, classes = target.shape
    p = _log_softmax(target).exp()
    index = label.view(n, 1, 1).expand(n, classes, 1)
    log_h = _log_softmax(h).gather(2, index).squeeze(2).clamp_min(LOG_FLOOR)
    every = torch.arange(classes, device=target.device)
    log_h = torch.where(every == k, log_h, log_h.detach())
    if not keep_label:
        p = torch.where((every == label.unsqueeze(1)) & (every != k), 0.0, p)
    return -(p * log_h).sum(1)


def generalized_cross_entropy(logits: Tensor, label: Tensor, q: float) -> Tensor:
    """GCE ``(1 - p^q) / q`` with p the probability of the label: cross-entropy for q -> 0, half of MAE for q = 1.

    Args:
        logits: ``(n, C)`` logits.
        label: ``(n,)`` int64 classes.
        q: in [0, 1].

    Returns:
        ``(n,)`` losses.
    """
    loss = F.cross_entropy(logits, label, reduction="none")
    return loss if q == 0 else -torch.expm1(-q * loss) / q


def truncated_generalized_cross_entropy(logits: Tensor, label: Tensor, q: float, k: float) -> Tensor:
    """Truncated GCE: ``(1 - p^q) / q`` where ``p > k``, and the constant ``(1 - k^q) / q`` elsewhere; ``(n,)``."""
    loss = generalized_cross_entropy(logits, label, q)
    constant = -math.log(k) if q == 0 else (1.0 - k**q) / q
    return loss.clamp_max(constant)  # the loss falls with p, so that p <= k is loss >= constant


def mean_absolute_error(logits: Tensor, label: Tensor) -> Tensor:
    """MAE ``||e_y - p||_1 = 2 (1 - p_y)`` of ``(n, C)`` logits and int64 labels; ``(n,)``."""
    return 2.0 * (1.0 - observed_probability(logits, label))


def early_learning(logits: Tensor, memory: Tensor) -> Tensor:
    """ELR's term ``log(1 - <p, t>)`` with ``t`` the moving average of earlier predictions (Eq. 6), to be minimised.

    Args:
        logits: ``(n, C)`` logits.
        memory: ``(n, C)`` averages, without gradient. Each row sums to at most 1.

    Returns:
        ``(n,)`` values, at most 0; the inner product is clamped at 1 - 1e-4.
    """
    inner = (_log_softmax(logits).exp() * memory).sum(1)
    return torch.log1p(-inner.clamp_max(1.0 - 1e-4))


def mean_class_logits(logits: Tensor) -> Tensor:
    """Logs of the mean softmax of several models: ``(members, n, C)`` -> ``(n, C)``."""
    return torch.logsumexp(_log_softmax(logits), dim=0) - math.log(logits.shape[0])


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis, in float32 where the logits have less."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


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
