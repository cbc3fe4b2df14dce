"""A task small enough to know: users of one taste like items of the same taste, and some clicks are noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recdenoise import seeds
from recdenoise.errors import unknown_name
from recdenoise.task import Batch, Pass


class Dot(nn.Module):
    """A dot product of embeddings, with optional dropout so that resuming has a global generator to restore."""

    def __init__(self, n_users: int, n_items: int, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.user = nn.Embedding(n_users, width)
        self.item = nn.Embedding(n_items, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.user.weight, std=0.1)
        nn.init.normal_(self.item.weight, std=0.1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.dropout(self.user(users)) * self.item(items)).sum(-1)


class ToyLoader:
    def __init__(self, task: ToyTask, sweep: Pass, key: tuple[int, ...]) -> None:
        generator = seeds.generator("cpu", task.seed, "toy", *key)
        self.order = torch.randperm(task.n_rows, generator=generator)
        users = task.users[self.order]
        weights = (~task.seen).double() if sweep.reject else torch.ones_like(task.seen).double()
        if sweep.negatives == "popularity":
            weights = weights * task.seen.sum(0).double().pow(sweep.beta)
        self.negatives = torch.multinomial(weights[users], 1, generator=generator).squeeze(1)
        self.task = task

    def __len__(self) -> int:
        return -(-self.task.n_rows // self.task.batch_size)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        for step in range(start, len(self)):
            cut = slice(step * self.task.batch_size, (step + 1) * self.task.batch_size)
            rows = self.order[cut]
            users, n = self.task.users[rows], len(rows)
            items = torch.cat([self.task.items[rows], self.negatives[cut]])
            label = torch.cat([torch.ones(n), torch.zeros(n)])
            index = torch.cat([rows, torch.full((n,), -1)])
            yield Batch(index, (users.repeat(2), items), label, (n, n))


class ToyTask:
    """Twelve users, ten items, two tastes; ``noise`` of the clicks are on the other taste."""

    n_classes = 2
    l2_scale = 1 / 12
    rowwise = False

    def __init__(self, seed: int = 1, batch_size: int = 8, dropout: float = 0.0) -> None:
        self.seed, self.batch_size, self.dropout = seed, batch_size, dropout
        generator = torch.Generator().manual_seed(7)
        taste = torch.arange(12).unsqueeze(1) % 2 == torch.arange(10).unsqueeze(0) % 2
        clean = taste & (torch.rand(12, 10, generator=generator) < 0.8)
        noisy = ~taste & (torch.rand(12, 10, generator=generator) < 0.1)
        self.taste, self.seen = taste, clean | noisy
        self.users, self.items = self.seen.nonzero(as_tuple=True)
        self.n_rows = len(self.users)

    def new_target(self, member: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(self.seed, "target", member))
            return Dot(12, 10, dropout=self.dropout)

    def new_auxiliary(self, kind: str, member: int) -> nn.Module:
        if kind not in {"mf", "gmf", "neumf"}:
            raise unknown_name("auxiliary model", kind, ["mf", "gmf", "neumf"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(self.seed, "auxiliary", member))
            return Dot(12, 10)

    def call(self, module: nn.Module, inputs: Any) -> Tensor:
        return module(*inputs)

    def begin_step(self, modules: nn.Module) -> None:
        pass

    def loader(self, sweep: Pass, key: tuple[int, ...]) -> ToyLoader:
        return ToyLoader(self, sweep, key)

    def scan(self, function: Callable[[Any], Tensor]) -> Tensor:
        with torch.no_grad():
            return function((self.users, self.items))

    def validate(self, score: Callable[[Any], Tensor], wanted: set[str]) -> dict[str, float]:
        """The true tastes as validation data."""
        users, items = (t.reshape(-1) for t in torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij"))
        with torch.no_grad():
            loss = nn.functional.binary_cross_entropy_with_logits(
                score((users, items)), self.taste.reshape(-1).float(), reduction="none"
            )
        trimmed = loss.sort().values[: int(0.8 * len(loss))]
        values = {"loss": loss.mean().item(), "trimmed_loss": trimmed.mean().item()}
        return {name: values.get(name, -values["loss"]) for name in wanted}
