"""The user-item graph and its propagation, in which only the smaller side is propagated.

LightGCN (He et al., SIGIR 2020, Eq. 7-8) averages the layers ``x, Ax, ..., A^L x`` of the symmetrically normalised
adjacency ``A = [[0, R], [R^T, 0]]``, ``R = D_u^-1/2 B D_i^-1/2``. A layer of the items is ``R^T`` times the layer of
the users before it, and so ``R^T R`` times their own layer two before. With few items and many users (or the reverse)
that is all one needs: the layers of the smaller side ``s_0 = x_s``, ``s_1 = R^T x_b``, ``s_k = R^T R s_(k-2)``, and for
the nodes of the larger side that a batch names ``(x_b + R (s_0 + ... + s_(L-1))) / (L + 1)``. Where ``R^T R`` is sparse
enough to be kept, nothing as large as the larger side's table is written in the forward pass, and its gradient once in
the backward pass. The values are those of Eq. 7-8; only the order of summation differs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recdenoise.errors import UserError

_OVERLAP_WORK = 20
"""``R^T R`` is tried where it takes no more multiplications than so many products with ``R``."""


class CompressedRows(NamedTuple):
    """A sparse matrix in compressed rows, as three dense tensors that copy, pickle and move like any other.

    Attributes:
        crow: (rows + 1,) int32, where each row begins.
        col: (nnz,) int32, the column of each entry, in order within a row.
        value: (nnz,) float, the entry itself.
    """

    crow: Tensor
    col: Tensor
    value: Tensor

    @property
    def n_rows(self) -> int:
        """How many rows it has."""
        return self.crow.numel() - 1

    def to(self, *args: Any) -> CompressedRows:
        """Move the tensors to a device."""
        return CompressedRows(*(part.to(*args) for part in self))


class BipartiteGraph(NamedTuple):
    """The normalised graph: no user meets a user, no item an item.

    Attributes:
        by_user: (n_users, n_items), ``R``.
        by_item: (n_items, n_users), ``R^T``.
        overlap: the smaller side's square ``R^T R`` (users: ``R R^T``) where it has so few entries that one product
            with it is cheaper than one with ``R`` and one with ``R^T``; otherwise ``None``.
    """

    by_user: CompressedRows
    by_item: CompressedRows
    overlap: CompressedRows | None

    @property
    def items_are_fewer(self) -> bool:
        """Whether the items are the smaller side."""
        return self.by_item.n_rows <= self.by_user.n_rows


def bipartite_graph(users: Tensor, items: Tensor, n_users: int, n_items: int) -> BipartiteGraph:
    """Build the normalised user-item graph; repeated pairs count once.

    torch-geometric computes the normalisation (``gcn_norm`` without self loops). Nodes without an edge get an empty
    row, so their propagated layers are zero.

    Args:
        users: (n,) user ids in ``[0, n_users)``.
        items: (n,) item ids in ``[0, n_items)``.
        n_users: number of user nodes, the padding user included.
        n_items: number of item nodes, the padding item included.

    Returns:
        The graph on the CPU in single precision, rows in order and columns in order within a row.

    Raises:
        UserError: when the graph has 2**31 nodes or entries or more, which 32-bit indices cannot hold.
    """
    # Imported here: torch-geometric takes seconds to import, and only graph models need it.
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    users, items = users.cpu().long(), items.cpu().long()
    n_nodes = n_users + n_items
    if n_nodes >= 2**31 or 2 * users.numel() >= 2**31:
        raise UserError(f"A graph of {n_nodes} nodes and {users.numel()} interactions is too large for 32-bit indices.")
    by_user = torch.unique(users * n_items + items)  # one sort gives the users' rows, deduplicated
    users, items = by_user // n_items, by_user % n_items
    by_item = torch.sort(items * n_users + users).values  # a second sort gives the items' rows
    row = torch.cat([users, n_users + by_item // n_users])
    col = torch.cat([n_users + items, by_item % n_users])
    _, value = gcn_norm(torch.stack([row, col]), None, n_nodes, add_self_loops=False, dtype=torch.float32)
    n = len(users)
    forth = CompressedRows(_row_starts(users, n_users), items.int(), value[:n].clone())
    back = CompressedRows(_row_starts(by_item // n_users, n_items), (by_item % n_users).int(), value[n:].clone())
    return BipartiteGraph(forth, back, _overlap(forth, back) if n_items <= n_users else _overlap(back, forth))


def _row_starts(row: Tensor, n_rows: int) -> Tensor:
    starts = torch.zeros(n_rows + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(row, minlength=n_rows).cumsum(0)
    return starts


def _overlap(large: CompressedRows, small: CompressedRows) -> CompressedRows | None:
    """``R^T R`` for ``R`` with the rows of the larger side, unless it would not pay."""
    from scipy import sparse

    entries, n_small = large.col.numel(), small.n_rows
    # multiplications up to each row of the product, which also bound its entries
    each = large.crow.diff().long().index_select(0, small.col)
    running = F.pad(each.cumsum(0), (1, 0)).index_select(0, small.crow)
    if not entries or int(running[-1]) > _OVERLAP_WORK * entries:
        return None
    shape = large.n_rows, n_small
    r = sparse.csr_array((large.value.double().numpy(), large.col.numpy(), large.crow.numpy()), shape)
    back = sparse.csr_array((small.value.double().numpy(), small.col.numpy(), small.crow.numpy()), shape[::-1])
    # in blocks, so that no more is ever held than would be kept
    filled = 2 * entries * torch.arange(1, _OVERLAP_WORK // 2 + 1)
    cuts = torch.searchsorted(running, filled).clamp_(max=n_small).unique().tolist()
    blocks: list[sparse.csr_array] = []
    for first, last in pairwise(sorted({0, *cuts, n_small})):
        blocks.append(sparse.csr_array(back[first:last] @ r))
        if sum(block.nnz for block in blocks) > 2 * entries:
            return None
    product = sparse.csr_array(sparse.vstack(blocks, format="csr"))
    product.sort_indices()
    parts = product.indptr.astype(np.int32), product.indices.astype(np.int32), product.data.astype(np.float32)
    return CompressedRows(*map(torch.from_numpy, parts))


def product(matrix: CompressedRows, dense: Tensor) -> Tensor:
    """Multiply the sparse matrix with a dense one, without autograd.

    On the CPU in single precision the kernel behind ``embedding_bag`` is about twice as fast as the CSR product; the
    sum is the same. Everything else takes the CSR product.

    Args:
        matrix: (m, n) sparse.
        dense: (n, d).

    Returns:
        (m, d).
    """
    dense = dense.detach()  # else the kernel prepares a backward pass of its own
    if dense.device.type == "cpu" and dense.dtype == torch.float32:
        return F.embedding_bag(
            matrix.col, dense, matrix.crow[:-1], mode="sum", per_sample_weights=matrix.value.to(dense.dtype)
        )
    csr = torch.sparse_csr_tensor(
        matrix.crow, matrix.col, matrix.value.to(dense.dtype), (matrix.n_rows, dense.shape[0])
    )
    with torch.autocast(dense.device.type, enabled=False):  # which would cast the product and nothing it is added to
        return csr @ dense


class _Product(torch.autograd.Function):
    """``M x``, whose gradient is the product with the transpose: handed in, so that nothing is transposed."""

    @staticmethod
    def forward(matrix: CompressedRows, transpose: CompressedRows, x: Tensor) -> Tensor:
        return product(matrix, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.matrices = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        matrix, transpose = ctx.matrices
        # Through apply, so that second derivatives (meta-learned weights) work as well.
        return None, None, _Product.apply(transpose, matrix, grads[0].contiguous())


class _Collect(torch.autograd.Function):
    """From the larger side's table ``x``: ``R^T x`` and the rows ``x[nodes]``, whose gradients become one table."""

    @staticmethod
    def forward(large: CompressedRows, small: CompressedRows, nodes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return product(small, x), x.index_select(0, nodes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.parts = inputs[:3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor]:
        return None, None, None, _Spread.apply(*ctx.parts, *grads)


class _Spread(torch.autograd.Function):
    """``R y`` with ``rows`` added at ``nodes``: the transpose of :class:`_Collect`."""

    @staticmethod
    def forward(large: CompressedRows, small: CompressedRows, nodes: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return product(large, y.contiguous()).index_add_(0, nodes, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.parts = inputs[:3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        return None, None, None, *_Collect.apply(*ctx.parts, grads[0].contiguous())


def _rows_times(large: CompressedRows, small: CompressedRows, nodes: Tensor, y: Tensor) -> Tensor:
    """``R[nodes] y``; touches the entries of these rows alone where they are few."""
    if y.device.type == "cpu":  # elsewhere the number of entries would have to be waited for, and the product is cheap
        starts = large.crow.index_select(0, nodes)
        lengths = large.crow.index_select(0, nodes + 1) - starts
        entries = int(lengths.sum())
        if entries <= large.n_rows:  # an entry costs more here, but no table of the larger side's size is written
            place = torch.repeat_interleave(lengths.long(), output_size=entries)
            first = lengths.cumsum(0) - lengths
            at = torch.arange(entries) + (starts - first).index_select(0, place)
            value = large.value.index_select(0, at).to(y.dtype)
            terms = y.index_select(0, large.col.index_select(0, at)) * value[:, None]
            return y.new_zeros(len(nodes), y.shape[1]).index_add(0, place, terms)
    return _Product.apply(large, small, y).index_select(0, nodes)


class _Propagation(NamedTuple):
    """The smaller side's average, and what the larger side's needs."""

    small: Tensor
    own: Tensor
    """The larger side's embeddings, of all nodes or of those asked for."""
    reached: Tensor
    """The sum of the smaller side's layers that reach the larger side."""


def _propagate(
    graph: BipartiteGraph, x_large: Tensor, x_small: Tensor, n_layers: int, nodes: Tensor | None
) -> _Propagation:
    large, small = _sides(graph)

    def two_layers(s: Tensor) -> Tensor:
        if graph.overlap is not None:
            return _Product.apply(graph.overlap, graph.overlap, s)
        return _Product.apply(small, large, _Product.apply(large, small, s))

    if nodes is None:
        collected, own = _Product.apply(small, large, x_large), x_large
    else:
        collected, own = _Collect.apply(large, small, nodes, x_large)
    layers = [x_small, collected]
    while len(layers) <= n_layers:
        layers.append(two_layers(layers[-2]))
    reached = sum(layers[1:n_layers], start=layers[0])
    return _Propagation((reached + layers[n_layers]) / (n_layers + 1), own, reached)


def _sides(graph: BipartiteGraph) -> tuple[CompressedRows, CompressedRows]:
    return (graph.by_user, graph.by_item) if graph.items_are_fewer else (graph.by_item, graph.by_user)


def propagate(graph: BipartiteGraph, users: Tensor, items: Tensor, n_layers: int) -> tuple[Tensor, Tensor]:
    """Average the layers 0..L of all nodes; differentiable any number of times.

    Args:
        graph: the graph.
        users: (n_users, d) embeddings.
        items: (n_items, d) embeddings.
        n_layers: L, at least 0.

    Returns:
        (n_users, d) and (n_items, d), each side's part of ``(x + Ax + ... + A^L x) / (L + 1)``.
    """
    if n_layers == 0:
        return users.clone(), items.clone()  # as new as any other result: a parameter is not to be kept for one
    large, small = _sides(graph)
    x_large, x_small = (users, items) if graph.items_are_fewer else (items, users)
    part = _propagate(graph, x_large, x_small, n_layers, None)
    out = (part.own + _Product.apply(large, small, part.reached)) / (n_layers + 1)
    return (out, part.small) if graph.items_are_fewer else (part.small, out)


def propagate_pairs(
    graph: BipartiteGraph, users: Tensor, items: Tensor, n_layers: int, of: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Average the layers 0..L for pairs of nodes: rows of :func:`propagate`, without those that no pair names.

    Args:
        graph: the graph.
        users: (n_users, d) embeddings.
        items: (n_items, d) embeddings.
        n_layers: L, at least 0.
        of: (n,) user ids and (n,) item ids.

    Returns:
        (n, d) of the users and (n, d) of the items.
    """
    if n_layers == 0:
        return users.index_select(0, of[0]), items.index_select(0, of[1])
    large, small = _sides(graph)
    x_large, x_small = (users, items) if graph.items_are_fewer else (items, users)
    of_large, of_small = of if graph.items_are_fewer else of[::-1]
    if x_large.device.type == "cpu":  # elsewhere the number of distinct nodes would have to be waited for
        nodes, place = torch.unique(of_large, return_inverse=True)
    else:
        nodes, place = of_large, None
    part = _propagate(graph, x_large, x_small, n_layers, nodes)
    rows = (part.own + _rows_times(large, small, nodes, part.reached)) / (n_layers + 1)
    rows = rows if place is None else rows.index_select(0, place)
    both = rows, part.small.index_select(0, of_small)
    return both if graph.items_are_fewer else both[::-1]
