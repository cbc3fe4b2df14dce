"""How long full ranking and negative sampling take, beside the bare tensor operations they cannot do without.

Run: ``python -m benchmarks.ranking_speed [--threads 1] [--device cpu]``. Interactions are generated with a long tail,
in the shapes of MovieLens-100K (943 x 1,682) and of a catalogue of 9,500 items; times are medians, the sides of a ratio
taking turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from recdenoise.interactions import Interactions
from recdenoise.ranking import top_k
from recdenoise.sampling import NegativeSampler

SHAPES = {"943 x 1682": (943, 1682, 80_000), "10000 x 9500": (10_000, 9_500, 400_000)}
DIM = 32
K = 20


def generate(n_users: int, n_items: int, n_pairs: int, device: str) -> Interactions:
    """Distinct pairs, users uniform, items in proportion to 1 / rank ** 0.8."""
    generator = torch.Generator().manual_seed(0)
    tail = torch.arange(1, n_items + 1, dtype=torch.float64) ** -0.8
    users = torch.randint(n_users, (2 * n_pairs,), generator=generator)
    items = torch.multinomial(tail, 2 * n_pairs, replacement=True, generator=generator)
    pairs = torch.unique(users * n_items + items)
    pairs = pairs[torch.randperm(len(pairs), generator=generator)[:n_pairs]]
    return Interactions.from_pairs(pairs // n_items, pairs % n_items, n_users, n_items, device=device)


def medians(sides: list[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Median seconds of every side; the sides take turns, so that a busy machine slows all of them."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 2):
        for side, taken in zip(sides, times, strict=True):
            begin = time.perf_counter()
            side()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def bare(users: Tensor, items: Tensor, mask: Interactions, block: int) -> list[Tensor]:
    """Matmul, mask and top-k, with the rows and columns to mask known beforehand."""
    kept = []
    for begin in range(0, len(users), block):
        scores = users[begin : begin + block] @ items.T
        low, high = int(mask.indptr[begin]), int(mask.indptr[min(begin + block, len(users))])
        flat = mask.keys[low:high] - begin * mask.n_items
        scores.view(-1).index_fill_(0, flat, -torch.inf)
        kept.append(scores.topk(K).indices)
    return kept


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    for name, (n_users, n_items, n_pairs) in SHAPES.items():
        seen = generate(n_users, n_items, n_pairs, device)
        user_factors = torch.randn(n_users, DIM, device=device)
        item_factors = torch.randn(n_items, DIM, device=device)
        everybody = torch.arange(n_users, device=device)

        def score(chunk: Tensor, left: Tensor = user_factors, right: Tensor = item_factors) -> Tensor:
            return left[chunk] @ right.T

        def ours(chunk: Tensor = everybody, mask: Interactions = seen, n: int = n_items) -> Tensor:
            return top_k(score, chunk, K, n, mask=mask)

        blocks = {"8M": max(1, (1 << 23) // n_items), "1M": max(1, (1 << 20) // n_items)}
        rivals = [partial(bare, user_factors, item_factors, seen, block) for block in blocks.values()]
        seconds, *others = medians([ours, *rivals], options.repeats, device)
        for label, other in zip(blocks, others, strict=True):
            print(
                f"top_k    {name:13} {seconds * 1e3:8.2f} ms; bare, blocks of {label}: {other * 1e3:8.2f} ms; "
                f"ratio {seconds / other:.2f}"
            )
        order = seen.users()[torch.randperm(n_pairs, device=device)]
        for distribution in ("uniform", "popularity"):
            sampler = NegativeSampler(seen, distribution)
            generator = torch.Generator(device).manual_seed(0)
            [seconds] = medians([partial(sampler.sample, order, generator)], options.repeats, device)
            print(f"negatives {name:12} {seconds * 1e3:8.2f} ms for {n_pairs} {distribution} draws")


if __name__ == "__main__":
    main()
