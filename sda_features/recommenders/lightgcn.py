"""Graph propagation of LightGCN (He et al. 2020): no weights and no activation, hence linear.

One layer is A = D^-1/2 [[0, R], [R^T, 0]] D^-1/2, and a node's representation is the mean of its
layers, E = (E^0 + A E^0 + ... + A^L E^0) / (L + 1). The graph has two sides, so what starts at one
side is there after an even number of hops and at the other after an odd number. Only R is stored,
and each side is propagated by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor, nn

from sda_features.logs.interactions import Interactions


@final
class BipartiteGraph(nn.Module):
    """Normalised links between users and items, in both directions.

    R^_ui = 1 / sqrt(n_u n_i) where user u took item i, n being numbers of distinct neighbours. An
    item that was taken twice counts once. Somebody without any interaction, and padding, have no
    links. The matrices are buffers that `state_dict` leaves out: they belong to the log.

    Attributes:
        to_users: R^, sparse float32 [U, I + 1] in compressed rows.
        to_items: R^ transposed.
    """

    to_users: Tensor
    to_items: Tensor

    def __init__(self, train: Interactions) -> None:
        super().__init__()
        shape = (train.user_count, train.item_count + 1)
        pairs = (train.users.astype(np.int32), train.items)  # 32 bits are what MKL takes without a copy
        links = csr_array((np.ones(len(train.items)), pairs), shape)
        links.sum_duplicates()  # each pair once, which SciPy before 1.15 leaves to the caller
        taken = np.diff(links.indptr)
        weights = np.repeat(taken, taken) * np.bincount(links.indices)[links.indices]
        links.data = (1 / np.sqrt(weights)).astype(np.float32)
        for name, matrix in (("to_users", links), ("to_items", links.T.tocsr())):
            starts, columns, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
            self.register_buffer(name, _sparse(starts, columns, values, matrix.shape), persistent=False)

    def users_from(self, items: Tensor, rows: Tensor | None = None) -> Tensor:
        """One hop of T tables, R^ X_t: float32 [T, I + 1, d] -> [T, U, d].

        Args:
            items: X.
            rows: int64 [n], distinct users; only these rows are computed, [T, n, d].
        """
        product: Tensor = _Product.apply(self.to_users, self.to_items, items, rows)  # type: ignore[no-untyped-call]
        return product

    def items_from(self, users: Tensor, rows: Tensor | None = None) -> Tensor:
        """One hop, R^T X_t: float32 [T, U, d] -> [T, I + 1, d], or [T, n, d] for distinct items `rows`."""
        product: Tensor = _Product.apply(self.to_items, self.to_users, users, rows)  # type: ignore[no-untyped-call]
        return product

    def user_propagation(self, users: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """What starts at users and returns to users.

        Args:
            users: float32 [T, U, d], layer 0.
            layers: L.

        Returns:
            here: sum of A^l X over even l <= L, float32 [T, U, d].
            leaving: the same over even l < L. One hop further it is the sum over odd l <= L on the
                items' side; a linear map to fewer tables is cheaper before that hop than after it.
        """
        return _propagation(users, layers, lambda tables: self.users_from(self.items_from(tables)))

    def item_propagation(self, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """`user_propagation` with both sides exchanged, float32 [T, I + 1, d]."""
        return _propagation(items, layers, lambda tables: self.items_from(self.users_from(tables)))


def _propagation(
    start: Tensor, layers: int, there_and_back: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    here = before = current = start
    for _ in range(layers // 2):
        current = there_and_back(current)
        before, here = here, here + current
    return here, here if layers % 2 else before


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _select(matrix: Tensor, rows: Tensor) -> Tensor:
    """Rows of a sparse matrix, in the order given."""
    starts = matrix.crow_indices()
    first = starts[rows]
    lengths = starts[rows + 1] - first
    ends = lengths.cumsum(0, dtype=starts.dtype)
    total = int(ends[-1]) if len(rows) else 0
    place = torch.arange(total, dtype=starts.dtype, device=starts.device)
    place = place + torch.repeat_interleave(first - ends + lengths, lengths)
    return _sparse(
        F.pad(ends, (1, 0)), matrix.col_indices()[place], matrix.values()[place], (len(rows), matrix.shape[1])
    )


def _multiply(matrix: Tensor, tables: Tensor) -> Tensor:
    """S X_t, one table at a time: side by side their rows no longer stay in the cache."""
    out = tables.new_empty(len(tables), matrix.shape[0], tables.shape[2])
    for table, product in zip(tables.contiguous(), out, strict=True):
        torch.addmm(product, matrix, table, beta=0, out=product)  # `@` would fill and copy as well
    return out


class _Product(torch.autograd.Function):
    """S X_t, or some rows. The gradient needs S^T, which is at hand; autograd would build it in each step."""

    @staticmethod
    def forward(
        context: Any, matrix: Tensor, transposed: Tensor, tables: Tensor, rows: Tensor | None
    ) -> Tensor:
        context.transposed, context.rows = transposed, rows
        return _multiply(matrix if rows is None else _select(matrix, rows), tables)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None]:
        (gradient,) = gradients
        if context.rows is not None:
            whole = gradient.new_zeros(len(gradient), context.transposed.shape[1], gradient.shape[2])
            gradient = whole.index_copy_(1, context.rows, gradient)
        return None, None, _multiply(context.transposed, gradient), None
