"""What the benchmark compares after training: full ranking, NeuMF's factored scores, LightGCN's propagation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.ranking_speed import bare, medians
from benchmarks.sides import Bench
from recdenoise.ranking import top_k
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.models.graph import propagate

__all__ = ["comparisons", "medians"]

K = 20
NEUMF_USERS = 64
"""So many users are enough to time a score of every item: 108,000 pairs on ml-100k."""

Comparison = tuple[str, list[Callable[[], object]], float, bool]
"""Name, our side and then the others', the limit, whether it is a lower one."""


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """The required comparisons of one model."""
    if bench.model in ("GMF", "LightGCN"):
        yield full_ranking(bench)
    if bench.model == "NeuMF":
        yield factored_scores(bench)
    if bench.model == "LightGCN":
        yield propagation(bench)


@torch.no_grad()
def full_ranking(bench: Bench) -> Comparison:
    """Everybody's best items with what is known masked, against matmul, mask and top-k on finished factors.

    Ours starts from the weights, so LightGCN's propagation is in its time and not in the yardstick's.
    """
    denoiser, known = bench.denoiser("normal"), bench.data.known
    denoiser.eval()
    everybody = torch.arange(bench.n_users)

    def ours() -> Tensor:
        denoiser.task.begin_step(denoiser)
        score = lambda users: denoiser.score(WholeRows(users))  # noqa: E731
        return top_k(score, everybody, K, bench.n_items, mask=known, first_item=1)

    model: Any = denoiser.target
    if bench.model == "GMF":
        users, items = model.user_embedding.weight * model.predict_layer.weight, model.item_embedding.weight
    else:
        users, items = model()
    blocks = [max(1, cells // bench.n_items) for cells in (1 << 20, 1 << 23)]
    others = [partial(bare, users.contiguous(), items.contiguous(), known, block) for block in blocks]
    return f"{bench.model}: full ranking / matmul + mask + topk", [ours, *others], 2.0, False


def factored_scores(bench: Bench) -> Comparison:
    """NeuMF's scores of all items for some users, against its plain form pair by pair in blocks of two sizes."""
    ours, plain = bench.denoiser("normal").eval(), bench.plain_model().eval()
    users = torch.arange(1, NEUMF_USERS + 1)
    pairs = users.repeat_interleave(bench.n_items), torch.arange(bench.n_items).repeat(len(users))

    @torch.no_grad()
    def pair_by_pair(block: int) -> list[Tensor]:
        parts = zip(*(ids.split(block) for ids in pairs), strict=True)
        return [plain(reference.Step(u, i, u, u)) for u, i in parts]

    with torch.no_grad():
        mine = partial(torch.no_grad()(ours.score), WholeRows(users))
    others = [partial(pair_by_pair, block) for block in (4096, 1 << 15)]
    return "NeuMF: pair by pair / factored full ranking", [mine, *others], 1.4, True


def propagation(bench: Bench) -> Comparison:
    """LightGCN's propagation forward and backward, against as many products of the CSR matrix alone."""
    model: Any = bench.denoiser("normal").target
    plain: Any = bench.plain_model()
    start = model.get_ego_embeddings().detach().requires_grad_(True)
    gradient = torch.randn_like(start)
    sizes = [model.n_users, model.n_items]

    def ours() -> Tensor:
        users, items = start.split(sizes)
        out = propagate(model.graph, users, items, model.n_layers)
        return torch.autograd.grad(out, start, gradient.split(sizes))[0]

    @torch.no_grad()
    def products() -> None:
        for x in (start, gradient):
            for _ in range(model.n_layers):
                plain.matrix @ x

    return "LightGCN: propagation / CSR products alone", [ours, products], 1.5, False
