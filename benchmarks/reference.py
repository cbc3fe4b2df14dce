"""The yardstick of training speed: the bare training step of each model and method, in plain torch.

A step is what no implementation can leave out: forward of every network that the method has on the concatenated
positives and negatives, loss, L2, backward, Adam. Its id tensors are resident and already drawn. There is no sampler,
no shuffling, no logging, no loop machinery, and nothing of ``recdenoise`` is imported, so that it is independent code
whose losses the library's must equal (``tests/test_benchmarks.py``).

Every choice is the fastest of the plain ones, measured on one thread of an AMD EPYC with torch 2.15 (4,096 pairs):

- ``index_select`` for look-ups: forward and backward of one dot-product model take 0.46 ms at width 32, against 0.74 ms
  with ``nn.Embedding`` and 0.72 ms with ``table[ids]``;
- ``Adam(fused=True)``: 0.28 ms a step of three such models, against 0.79 ms with ``foreach`` and 0.85 ms with neither
  (:func:`adam_seconds` measures it again);
- the L2 term as Adam's coupled weight decay, whose gradient is the same and costs no pass of its own;
- one ``softplus`` of signed logits and one sum for a loss over positives and negatives;
- LightGCN by the CSR product, with A in place of its transpose in the backward pass because they are equal;
- what a frozen graph model propagates is computed once and not in every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("normal", "deca", "deca_p")


class Step(NamedTuple):
    """Resident tensors of one step.

    Attributes:
        users: (2 n,) user ids, n positives and then n negatives.
        items: (2 n,) item ids.
        label: (2 n,) ones and then zeros.
        sign: (2 n,) ``1 - 2 label``.
        distinct: (b,) users of an autoencoder's batch, else ``None``.
        place: (2 n,) where each pair's user is among them, else ``None``.
    """

    users: Tensor
    items: Tensor
    label: Tensor
    sign: Tensor
    distinct: Tensor | None = None
    place: Tensor | None = None


def make_step(users: Tensor, items: Tensor, distinct: Tensor | None = None, place: Tensor | None = None) -> Step:
    """A step from (2 n,) users and items, the n positives first."""
    label = torch.zeros(len(users))
    label[: len(users) // 2] = 1.0
    return Step(users, items, label, 1.0 - 2.0 * label, distinct, place)


def table(n: int, width: int, std: float = 0.01) -> nn.Parameter:
    """An (n, width) embedding table from N(0, std)."""
    return nn.Parameter(torch.randn(n, width) * std)


class MF(nn.Module):
    """Dot product of two embeddings."""

    def __init__(self, n_users: int, n_items: int, width: int = 32) -> None:
        super().__init__()
        self.user, self.item = table(n_users, width), table(n_items, width)

    def forward(self, step: Step) -> Tensor:
        """(2 n,) logits."""
        return (self.user.index_select(0, step.users) * self.item.index_select(0, step.items)).sum(1)


class GMF(nn.Module):
    """Weighted element-wise product of two embeddings."""

    def __init__(self, n_users: int, n_items: int, width: int = 32) -> None:
        super().__init__()
        self.user, self.item = table(n_users, width), table(n_items, width)
        self.head = nn.Linear(width, 1)

    def forward(self, step: Step) -> Tensor:
        """(2 n,) logits."""
        return self.head(self.user.index_select(0, step.users) * self.item.index_select(0, step.items)).squeeze(1)


class NeuMF(nn.Module):
    """GMF beside a perceptron on the concatenated embeddings, joined in one head."""

    def __init__(
        self, n_users: int, n_items: int, mf_width: int = 32, width: int = 128, hidden: tuple[int, ...] = (128, 64, 32)
    ) -> None:
        super().__init__()
        self.user_mf, self.item_mf = table(n_users, mf_width), table(n_items, mf_width)
        self.user_mlp, self.item_mlp = table(n_users, width), table(n_items, width)
        sizes = (2 * width, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(mf_width + hidden[-1], 1)

    def forward(self, step: Step) -> Tensor:
        """(2 n,) logits."""
        x = torch.cat((self.user_mlp.index_select(0, step.users), self.item_mlp.index_select(0, step.items)), 1)
        for layer in self.layers:
            x = layer(x).relu_()
        product = self.user_mf.index_select(0, step.users) * self.item_mf.index_select(0, step.items)
        return self.head(torch.cat((product, x), 1)).squeeze(1)


class _SymmetricProduct(torch.autograd.Function):
    """``matrix @ x`` for a symmetric CSR matrix: the gradient is the same product."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ grads[0]


def adjacency(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Tensor:
    """``D^-1/2 A D^-1/2`` of the user-item graph as a CSR matrix with 32-bit indices; repeated pairs count once."""
    users, items = torch.unique(torch.stack((users, items)), dim=1)
    n = n_users + n_items
    row, col = torch.cat((users, items + n_users)), torch.cat((items + n_users, users))
    degree = torch.bincount(row, minlength=n).clamp_(min=1).float()
    value = (degree[row] * degree[col]).rsqrt()
    matrix = torch.sparse_coo_tensor(torch.stack((row, col)), value, (n, n)).coalesce().to_sparse_csr()
    return torch.sparse_csr_tensor(matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values(), (n, n))


class LightGCN(nn.Module):
    """Dot product of embeddings averaged over the hops of the user-item graph."""

    def __init__(self, matrix: Tensor, n_users: int, n_items: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.matrix, self.n_users, self.n_layers = matrix, n_users, layers
        self.user, self.item = table(n_users, width, 0.1), table(n_items, width, 0.1)
        self.frozen: Tensor | None = None

    def propagate(self) -> Tensor:
        """(n_users + n_items, width) averaged embeddings."""
        x = torch.cat((self.user, self.item))
        total = x
        for _ in range(self.n_layers):
            x = _SymmetricProduct.apply(self.matrix, x)
            total = total + x
        return total / (self.n_layers + 1)

    def freeze(self) -> None:
        """Propagate for good."""
        with torch.no_grad():
            self.frozen = self.propagate()

    def forward(self, step: Step) -> Tensor:
        """(2 n,) logits."""
        nodes = self.propagate() if self.frozen is None else self.frozen
        return (nodes.index_select(0, step.users) * nodes.index_select(0, step.items + self.n_users)).sum(1)


class CDAE(nn.Module):
    """Autoencoder of users' rows with a vector per user; scores whole users and picks the pairs."""

    def __init__(self, rows: Tensor, width: int = 32, corruption: float = 0.5) -> None:
        super().__init__()
        n_users, n_items = rows.shape
        self.rows, self.corruption = rows, corruption
        self.user, self.encoder, self.decoder = (
            table(n_users, width),
            nn.Linear(n_items, width),
            nn.Linear(width, n_items),
        )

    def forward(self, step: Step) -> Tensor:
        """(2 n,) logits."""
        assert step.distinct is not None
        assert step.place is not None
        rows = F.dropout(self.rows.index_select(0, step.distinct), self.corruption, self.training)
        hidden = torch.tanh(self.encoder(rows) + self.user.index_select(0, step.distinct))
        scores = self.decoder(hidden)
        return scores.view(-1).index_select(0, step.place * scores.shape[1] + step.items)


@dataclass(frozen=True)
class Options:
    """Constants of the loss and of Adam; ``l2`` is already divided by the number of users."""

    c_1: float = 1000.0
    c_2: float = 1000.0
    alpha: float = 1.0
    l2: float = 0.0
    lr: float = 1e-3


def kl(p: Tensor, a: Tensor, b: Tensor, softplus_a: Tensor, softplus_b: Tensor) -> Tensor:
    """KL between Bernoullis of logits ``a`` and ``b``, where ``p = sigmoid(a)``."""
    return p * (a - b) - softplus_a + softplus_b


class Reference:
    """Networks, loss and optimiser of one method.

    Args:
        method: a name of :data:`METHODS`.
        target: the model.
        options: constants.
        auxiliary: DeCA's jointly trained network.
        prior: DeCA(p)'s frozen network.
        h, h_prime: the networks for P(y~ = 1 | y = 0) and P(y~ = 1 | y = 1), of which each step uses one.
    """

    def __init__(
        self,
        method: str,
        target: nn.Module,
        options: Options,
        *,
        auxiliary: nn.Module | None = None,
        prior: nn.Module | None = None,
        h: nn.Module | None = None,
        h_prime: nn.Module | None = None,
    ) -> None:
        self.method, self.target, self.options = method, target, options
        self.auxiliary, self.prior, self.h, self.h_prime = auxiliary, prior, h, h_prime
        if prior is not None:
            prior.requires_grad_(False).eval()
            if isinstance(prior, LightGCN):
                prior.freeze()
        groups: list[dict[str, Any]] = [{"params": list(target.parameters()), "weight_decay": options.l2}]
        others = [p for m in (auxiliary, h, h_prime) if m is not None for p in m.parameters()]
        if others:
            groups.append({"params": others})
        self.adam = torch.optim.Adam(groups, lr=options.lr, fused=True)

    def loss(self, step: Step, turn: int) -> Tensor:
        """Mean of the positives plus mean of the negatives; even turns denoise positives, odd ones negatives."""
        f, n = self.target(step), len(step.users) // 2
        if self.method == "normal":
            return F.softplus(step.sign * f).sum() / n
        assert self.h is not None
        assert self.h_prime is not None
        if self.prior is not None:
            with torch.no_grad():
                g = self.prior(step)
        else:
            assert self.auxiliary is not None
            g = self.auxiliary(step)
        p, o = torch.sigmoid(f), self.options
        if turn % 2 == 0:
            fit = (1.0 - p) * F.softplus(step.sign * self.h(step)) + p * (o.c_1 * (1.0 - step.label))
        else:
            fit = p * F.softplus(step.sign * self.h_prime(step)) + (1.0 - p) * (o.c_2 * step.label)
        soft_f, soft_g = F.softplus(f), F.softplus(g)
        if o.alpha == 1.0:
            agree = kl(torch.sigmoid(g), g, f, soft_g, soft_f)
        elif o.alpha == 0.0:
            agree = kl(p, f, g, soft_f, soft_g)
        else:
            there, back = kl(torch.sigmoid(g), g, f, soft_g, soft_f), kl(p, f, g, soft_f, soft_g)
            agree = o.alpha * there + (1.0 - o.alpha) * back
        return (fit + agree).sum() / n

    def train_step(self, step: Step, turn: int) -> None:
        """One update."""
        self.adam.zero_grad(set_to_none=True)
        self.loss(step, turn).backward()
        self.adam.step()

    def epoch(self, steps: Iterable[Step], turn: int = 0) -> int:
        """One update for every step; returns the next turn."""
        for step in steps:
            self.train_step(step, turn)
            turn += 1
        return turn


def adam_seconds(parameters: list[nn.Parameter], repeats: int = 30) -> dict[str, float]:
    """Median seconds of a step of torch's three Adams on copies of ``parameters``."""
    found = {}
    for name in ("fused", "foreach", "plain"):
        copies = [nn.Parameter(p.detach().clone()) for p in parameters]
        for copy in copies:
            copy.grad = torch.full_like(copy, 1e-3)
        adam = torch.optim.Adam(copies, fused=name == "fused", foreach=name == "foreach")
        taken = []
        for _ in range(repeats):
            begin = time.perf_counter()
            adam.step()
            taken.append(time.perf_counter() - begin)
        found[name] = statistics.median(taken)
    return found
