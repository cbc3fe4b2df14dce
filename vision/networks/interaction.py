"""DeNLL's memory of what is behind each class, and its predictions with a given and with an average background."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

GATE_BIAS = -2.0
"""Of the gates of the second level: at the start each head is 88% itself."""


class ClassBackgroundMemory(nn.Module):
    """mu: the moving average of background embeddings by observed class, ``(C, D)`` float32; no parameters.

    The first batch that shows a class sets its row; every later one moves it by ``mu <- m mu + (1 - m) mean`` of the
    batch's embeddings of that class. A class that no batch has shown is zero. Buffers: ``mean`` is mu, ``seen`` says
    which classes were shown, and ``moved`` whether a batch has shown any since it was last cleared.

    Args:
        n_classes: C.
        width: D of the embeddings.
        momentum: m, at least 0 and below 1.
    """

    def __init__(self, n_classes: int, width: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.seen: Tensor
        self.moved: Tensor
        self.register_buffer("mean", torch.zeros(n_classes, width))
        self.register_buffer("seen", torch.zeros(n_classes, dtype=torch.bool))
        self.register_buffer("moved", torch.zeros((), dtype=torch.bool))

    def forward(self) -> Tensor:
        """mu ``(C, D)``, a copy: what a graph holds stays as it was when the memory moves on."""
        return self.mean.clone()

    @torch.no_grad()
    def update(self, background: Tensor, observed: Tensor) -> None:
        """Move the rows of the classes in a batch.

        Args:
            background: ``(n, D)`` embeddings; no gradient flows back.
            observed: ``(n,)`` int64 observed labels; rows with -1 (mixed images) are skipped.
        """
        sums, counts = class_sums(background, observed, len(self.mean))
        shown = counts > 0
        mean = sums / counts.clamp_min(1).unsqueeze(1)
        moved = torch.where(self.seen.unsqueeze(1), self.momentum * self.mean + (1 - self.momentum) * mean, mean)
        self.mean.copy_(torch.where(shown.unsqueeze(1), moved, self.mean))
        self.seen.logical_or_(shown)
        self.moved.logical_or_(shown.any())

    @torch.no_grad()
    def rebuild(self, sums: Tensor, counts: Tensor) -> None:
        """Set every row to the exact mean over a data set.

        Args:
            sums: ``(C, D)`` sums of embeddings by observed class, as :func:`class_sums` gives them.
            counts: ``(C,)`` number of embeddings.
        """
        self.mean.copy_(sums / counts.clamp_min(1).unsqueeze(1))
        self.seen.copy_(counts > 0)


def class_sums(values: Tensor, observed: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Sums ``(C, D)`` and counts ``(C,)`` by class, float32, without gradient and without a scatter.

    Args:
        values: ``(n, D)``.
        observed: ``(n,)`` int64; rows with -1 belong to no class.
        n_classes: C.
    """
    classes = torch.arange(n_classes, device=observed.device)
    member = (observed.unsqueeze(1) == classes).float()
    with torch.autocast(values.device.type, enabled=False):
        return member.t() @ values.detach().float(), member.sum(0)


class GivenBackground(nn.Module):
    """g1 alone, DeNLL without its interaction module: ``l1 = head(relu(phi1 [z_f; z_b]))``.

    Args:
        width: D of the embeddings.
        n_classes: C.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.given = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, foreground: Tensor, background: Tensor) -> tuple[tuple[Tensor], Tensor]:
        """Logits ``(n, C)``, in a tuple of one, and the representation ``(n, D)``, of two ``(n, D)`` embeddings."""
        u = functional.relu(self.given(torch.cat([foreground, background], dim=1)))
        return (self.head(u),), u


class DebiasedInteraction(nn.Module):
    """DeNLL's debiased interaction module: two predictions that exchange features, then logits (Eq. 4 and 6).

    g1 sees the image's own background, g2 the average one of every class, so that it needs no label::

        u1 = relu(phi1 [z_f; z_b])                        u2 = (1/C) sum_i relu(W_f z_f + W_b mu_i + b)
        s  = relu(W [u1; u2]), D/2 wide                   v1 = u1 + sigmoid(A1 s) u2,   v2 = u2 + sigmoid(A2 s) u1
        (w1, w2) = sigmoid(G [v1; v2])                    o1 = (1 - w1) l1 + w1 l2,     o2 = (1 - w2) l2 + w2 l1

    with l1 = head1(v1), l2 = head2(v2), and the bias of G at -2 in the beginning.

    Source: the paper's Eq. 4 and 6, which leave the layers open.

    Args:
        width: D of the embeddings.
        n_classes: C.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.given = nn.Linear(2 * width, width)
        self.of_foreground = nn.Linear(width, width)
        self.of_background = nn.Linear(width, width, bias=False)
        self.shared = nn.Linear(2 * width, max(width // 2, 1))
        self.gates = nn.Linear(max(width // 2, 1), 2 * width)
        self.head1, self.head2 = nn.Linear(width, n_classes), nn.Linear(width, n_classes)
        self.mix = nn.Linear(2 * width, 2)
        nn.init.constant_(self.mix.bias, GATE_BIAS)

    def reset_parameters(self) -> None:
        """Draw every weight anew."""
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()
        nn.init.constant_(self.mix.bias, GATE_BIAS)

    def average(self, foreground: Tensor, memory: Tensor) -> Tensor:
        """u2 ``(n, D)`` of ``(n, D)`` foreground embeddings and ``(C, D)`` class backgrounds: Eq. 4, factored."""
        return functional.relu(
            self.of_foreground(foreground).unsqueeze(1) + self.of_background(memory).unsqueeze(0)
        ).mean(1)

    def exchange(self, foreground: Tensor, background: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """v1 and v2, ``(n, D)`` each, of two ``(n, D)`` embeddings and ``(C, D)`` class backgrounds."""
        u1 = functional.relu(self.given(torch.cat([foreground, background], dim=1)))
        u2 = self.average(foreground, memory)
        s = functional.relu(self.shared(torch.cat([u1, u2], dim=1)))
        a1, a2 = torch.sigmoid(self.gates(s)).chunk(2, dim=1)
        return u1 + a1 * u2, u2 + a2 * u1

    def forward(self, foreground: Tensor, background: Tensor, memory: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Logits o1 and o2, ``(n, C)`` each, and the representation (v1 + v2) / 2, ``(n, D)``.

        Args:
            foreground, background: ``(n, D)`` embeddings z_f and z_b.
            memory: ``(C, D)`` class backgrounds mu.
        """
        v1, v2 = self.exchange(foreground, background, memory)
        l1, l2 = self.head1(v1), self.head2(v2)
        w1, w2 = torch.sigmoid(self.mix(torch.cat([v1, v2], dim=1))).chunk(2, dim=1)
        return (torch.lerp(l1, l2, w1), torch.lerp(l2, l1, w2)), (v1 + v2) / 2
