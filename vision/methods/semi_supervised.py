"""What semi-supervised methods share: pseudo-labels, MixMatch over labelled and unlabelled images, consistency, ramps.

Sources: Berthelot et al., *MixMatch* (NeurIPS 2019); Li et al., *DivideMix* (ICLR 2020).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers.base import DenoiserConfig
from recdenoise.options import require
from recdenoise.parallel import ALONE, Parallel
from vision.methods.mixup import draw_larger_share, mixed


@dataclass(frozen=True)
class MixMatchConfig(DenoiserConfig):
    """Options of methods that train by MixMatch."""

    temperature: float = 0.5
    """T of the sharpening of pseudo-labels; 1 leaves them as they are."""

    mixup_alpha: float = 4.0
    """Of the Beta(alpha, alpha) that mixing shares are drawn from, one a batch; the larger of the share and its rest
    is an image's own. 0 mixes nothing."""

    lambda_u: float = 25.0
    """Weight of the loss of unlabelled images once it has grown; more of it for more noise."""

    ramp_epochs: float = 16.0
    """Epochs over which it grows from 0 in a straight line, from the first that is semi-supervised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        for name in ("mixup_alpha", "lambda_u", "ramp_epochs"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")


def ramp(at: float, start: float, length: float) -> float:
    """A straight line from 0 at ``start`` to 1 at ``start + length``, level on either side; epochs, parts included."""
    if at < start:
        return 0.0
    return min(1.0, (at - start) / length) if length else 1.0


def sigmoid_ramp(at: float, length: float) -> float:
    """``exp(-5 (1 - t)^2)`` with t from 0 to 1 over ``length`` epochs, then 1 (Laine and Aila, 2017)."""
    return math.exp(-5.0 * (1.0 - ramp(at, 0.0, length)) ** 2)


def sharpened(p: Tensor, temperature: float) -> Tensor:
    """``p^(1/T)``, brought back to sum 1: ``(n, C)`` probabilities (MixMatch Eq. 7).

    The largest probability of a row is taken out first, so that no power vanishes for all classes.
    """
    powers = (p / p.amax(1, keepdim=True)) ** (1.0 / temperature)
    return powers / powers.sum(1, keepdim=True)


def mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """The mean softmax of several looks at the same images, by views or by networks: each ``(n, C)``, in float32."""
    every = torch.stack([torch.softmax(each.detach(), dim=1, dtype=_at_least_float(each)) for each in logits])
    return every.mean(0)


def guessed(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Pseudo-labels of unlabelled images: the mean softmax of all looks, sharpened (co-guessing); ``(n, C)``."""
    return sharpened(mean_probability(logits), temperature)


def refined(observed: Tensor, logits: Sequence[Tensor], trust: Tensor, temperature: float) -> Tensor:
    """Labels ``w y + (1 - w) p``, sharpened (co-refinement, DivideMix Eq. 3); ``(n, C)``.

    Args:
        observed: ``(n, C)`` observed labels as probabilities.
        logits: looks at the images, each ``(n, C)``; p is their mean softmax.
        trust: ``(n,)`` w, the probability that a label is right.
        temperature: of the sharpening.
    """
    predicted = mean_probability(logits)
    weight = trust.to(predicted.dtype).unsqueeze(1)
    return sharpened(torch.lerp(predicted, observed.to(predicted.dtype), weight), temperature)


def consistency(first: Tensor, second: Tensor) -> Tensor:
    """``KL(p(view 1) || p(view 2))`` of ``(n, C)`` logits, view 1 without gradient: ``(n,)`` nats."""
    return objectives.class_kl(first.detach(), second)


@dataclass(frozen=True)
class Mixed:
    """Views of labelled and of unlabelled images, one after the other and mixed among each other.

    Attributes:
        inputs: ``(n, ...)``, to be scored in one forward.
        target: ``(n, C)`` labels, mixed alike.
        labelled: how many of them, at the beginning, are labelled.
        share: of an image's own in its mixture, at least one half.
    """

    inputs: Tensor
    target: Tensor
    labelled: int
    share: float

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of both parts, for the means of the losses; one where nothing is unlabelled."""
        rest = len(self.target) - self.labelled
        return (self.labelled, rest) if rest else (self.labelled,)


def mix(
    labelled: Sequence[Tensor],
    label: Tensor,
    unlabelled: Sequence[Tensor],
    guess: Tensor | None,
    alpha: float,
    parallel: Parallel = ALONE,
) -> Mixed:
    """MixMatch's mixtures (Algorithm 1): every view of every image with another view of any image of the batch.

    Args:
        labelled: views of the labelled images, each ``(b, ...)``.
        label: their labels ``(b, C)``.
        unlabelled: views of the unlabelled images, each ``(u, ...)``; may be empty.
        guess: their pseudo-labels ``(u, C)``; ``None`` where there are no views.
        alpha: of the Beta distribution that the batch's share is drawn from; 0 mixes nothing.
        parallel: the processes that share the batch.
    """
    views = [*labelled, *unlabelled]
    labels = [label] * len(labelled) + ([] if guess is None else [guess] * len(unlabelled))
    inputs, target = torch.cat(views), torch.cat(labels)
    n = len(label) * len(labelled)
    share = draw_larger_share(alpha)
    if share < 1.0:
        partners = draw_stream_partners([len(view) for view in views], parallel).to(target.device)
        inputs, target = (mixed(values, partners, share, parallel) for values in (inputs, target))
    return Mixed(inputs, target, n, share)


def draw_stream_partners(sizes: Sequence[int], parallel: Parallel = ALONE) -> Tensor:
    """Partners of the examples of several streams that stand one after the other, by torch's global generator.

    Several processes draw what one process draws that has the whole of every stream.

    Args:
        sizes: of this process's share of each stream.
        parallel: the processes that share the batch.

    Returns:
        ``(sum(sizes),)`` places among the examples of all processes, gathered in the order of their ranks.
    """
    total = sum(sizes)
    gathered = torch.arange(parallel.size * total).view(parallel.size, total)
    # Where one process that has everything would find an example: stream by stream, each in the order of the ranks.
    there = torch.cat([part.reshape(-1) for part in gathered.split(list(sizes), dim=1)])
    whole = torch.empty_like(there)
    whole[there] = torch.arange(len(there))
    drawn = torch.randperm(len(there))
    return there[drawn[whole.view(parallel.size, total)[parallel.rank]]]


def mixmatch_loss(
    logits: Tensor, target: Tensor, labelled: int, unlabelled_weight: float, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the labelled part, the squared distance of probabilities for the rest (MixMatch Eq. 3-5).

    Args:
        logits: ``(n, C)`` of the mixed inputs.
        target: ``(n, C)`` mixed labels.
        labelled: how many at the beginning are labelled.
        unlabelled_weight: of the other part's loss.
        class_weight: ``(C,)`` weights of the classes in the cross-entropy; ``None`` weighs all alike.

    Returns:
        ``(n,)`` losses, whose means over both parts are added.
    """
    kind = _at_least_float(logits)
    log_p = torch.log_softmax(logits[:labelled], dim=1, dtype=kind)
    wanted = target.to(kind)
    fit = wanted[:labelled] * log_p
    fit = -(fit if class_weight is None else fit * class_weight.to(kind)).sum(1)
    if labelled == len(logits):
        return fit
    apart = (torch.softmax(logits[labelled:], dim=1, dtype=kind) - wanted[labelled:]).square().mean(1)
    return torch.cat([fit, unlabelled_weight * apart])


@contextlib.contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """``module`` in eval mode inside the block and as it was after it; nothing in the block takes gradients."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _at_least_float(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
