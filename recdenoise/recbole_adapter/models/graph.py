"""The user-item graph and its propagation: built once in a few sorts, multiplied without a stored autograd graph.

LightGCN (He et al., SIGIR 2020, Eq. 7-8) averages the layers ``A^k x`` of the symmetrically normalised adjacency
``A = D^-1/2 [[0, R], [R^T, 0]] D^-1/2``. The average is a polynomial in ``A``, and ``A`` equals its transpose, so the
backward pass of the whole propagation is the propagation of the gradient: nothing has to be kept from the forward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recdenoise.errors import UserError


class Adjacency(NamedTuple):
    """A square sparse matrix in compressed rows, as three dense tensors that copy, pickle and move like any other.

    Attributes:
        crow: (n + 1,) int32, where each row begins.
        col: (nnz,) int32, the column of each entry.
        value: (nnz,) float, the entry itself.
    """

    crow: Tensor
    col: Tensor
    value: Tensor


def normalised_adjacency(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Adjacency:
    """Build the normalised user-item graph: nodes are users, then items; repeated pairs count once.

    torch-geometric computes the normalisation (``gcn_norm`` without self loops). Nodes without an edge get an empty
    row, so their propagated layers are zero.

    Args:
        users: (n,) user ids in ``[0, n_users)``.
        items: (n,) item ids in ``[0, n_items)``.
        n_users: number of user nodes, the padding user included.
        n_items: number of item nodes, the padding item included.

    Returns:
        The (n_users + n_items) x (n_users + n_items) matrix ``D^-1/2 A D^-1/2`` on the CPU, rows in order and columns
        in order within a row.

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
    edges, value = gcn_norm(torch.stack([row, col]), None, n_nodes, add_self_loops=False, dtype=torch.float32)
    crow = torch.zeros(n_nodes + 1, dtype=torch.int32)
    crow[1:] = torch.bincount(row, minlength=n_nodes).cumsum(0)
    return Adjacency(crow, edges[1].int(), value)


def product(matrix: Adjacency, dense: Tensor) -> Tensor:
    """Multiply the sparse matrix with a dense one, without autograd.

    On the CPU in single precision the kernel behind ``embedding_bag`` is about twice as fast as the CSR product; the
    sum is the same. Everything else takes the CSR product.

    Args:
        matrix: (n, n) sparse.
        dense: (n, d).

    Returns:
        (n, d).
    """
    if dense.device.type == "cpu" and dense.dtype == torch.float32:
        return F.embedding_bag(
            matrix.col, dense, matrix.crow[:-1], mode="sum", per_sample_weights=matrix.value.to(dense.dtype)
        )
    n = dense.shape[0]
    csr = torch.sparse_csr_tensor(matrix.crow, matrix.col, matrix.value.to(dense.dtype), (n, n))
    return csr @ dense


class _Propagation(torch.autograd.Function):
    """``(x + Ax + ... + A^L x) / (L + 1)`` whose gradient is the same map, because ``A`` is symmetric."""

    @staticmethod
    def forward(crow: Tensor, col: Tensor, value: Tensor, x: Tensor, n_layers: int) -> Tensor:
        matrix = Adjacency(crow, col, value)
        start = x / (n_layers + 1)
        out = start
        for _ in range(n_layers):  # Horner's scheme: one product and one addition a layer, no list of layers
            out = product(matrix, out).add_(start)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        crow, col, value, _, ctx.n_layers = inputs
        ctx.save_for_backward(crow, col, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor, None]:
        crow, col, value = ctx.saved_tensors
        # Through apply and not through forward, so that second derivatives (meta-learned weights) work as well.
        return None, None, None, _Propagation.apply(crow, col, value, grads[0], ctx.n_layers), None


def propagate(matrix: Adjacency, x: Tensor, n_layers: int) -> Tensor:
    """Average the layers 0..L of the propagation; differentiable in ``x``, any number of times.

    Args:
        matrix: (n, n), symmetric: the backward pass relies on it.
        x: (n, d) node embeddings.
        n_layers: L, at least 0.

    Returns:
        (n, d), ``(x + Ax + ... + A^L x) / (L + 1)``.
    """
    return _Propagation.apply(matrix.crow, matrix.col, matrix.value, x, n_layers)
