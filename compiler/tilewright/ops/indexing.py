"""Reading at places that come from data. Every such index is checked: a bad one is an error, never
a crash.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Expr, Operand, index_const
from tilewright.ops.common import cast, checked_index, fail, normalize_axis, select
from tilewright.ops.positions import at_position
from tilewright.ops.registry import op
from tilewright.ops.tensor import Constant, Tensor, compute, known_ints


@op("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The slices of x along an axis that the indices name."""
    at = normalize_axis(axis, x.rank)
    if x.rank == 0:
        raise fail("there is no axis to gather along")
    r = indices.rank
    shape = (*x.shape[:at], *indices.shape, *x.shape[at + 1 :])
    where = _places(indices, x.shape[at])
    return compute(shape, lambda *i: x[[*i[:at], where(i[at : at + r]), *i[at + r :]]])


def _places(indices: Tensor, extent: int) -> Callable[[Sequence[Expr]], Expr]:
    """The index at a place of `indices`; those that are known and right need no check."""
    if isinstance(indices, Constant) and indices.size:
        found = indices.value.astype(np.int64)
        table = np.where(found < 0, found + extent, found)
        if table.min() >= 0 and table.max() < extent:
            return lambda i: at_position(table, i, extent)
    return lambda i: checked_index(indices[tuple(i)], extent)


@op("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    at = normalize_axis(axis, x.rank)
    if indices.rank != x.rank or any(
        m > n for k, (m, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != at
    ):
        raise fail(f"indices of shape {indices.shape} do not fit {x.shape}")

    def element(*i: Expr) -> Operand:
        where = checked_index(indices[i], x.shape[at])
        return x[[where if k == at else v for k, v in enumerate(i)]]

    return compute(indices.shape, element)


@op("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = indices.shape[-1]
    b, q = batch_dims, indices.rank - 1
    if b + depth > x.rank or b > q or x.shape[:b] != indices.shape[:b]:
        raise fail(f"indices of shape {indices.shape} do not fit {x.shape}")
    shape = (*indices.shape[:-1], *x.shape[b + depth :])

    def element(*i: Expr) -> Operand:
        where = [
            checked_index(indices[[*i[:q], index_const(k)]], x.shape[b + k]) for k in range(depth)
        ]
        return x[[*i[:b], *where, *i[q:]]]

    return compute(shape, element)


@op("OneHot")
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    n = known_ints(depth)[0]
    at = normalize_axis(axis, indices.rank + 1)
    shape = (*indices.shape[:at], n, *indices.shape[at:])

    def element(*i: Expr) -> Operand:
        index = cast(DType.I64, indices[[*i[:at], *i[at + 1 :]]])
        wrapped = select(index < 0, index + n, index)
        return select(wrapped.eq(i[at]), values[[1]], values[[0]])

    return compute(shape, element)


@op("ReverseSequence")
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    if x.rank < 2 or {batch_axis, time_axis} != {0, 1}:
        raise fail("batch_axis and time_axis are 0 and 1")
    n = x.shape[time_axis]

    def element(*i: Expr) -> Operand:
        length, t = cast(DType.I64, lengths[i[batch_axis]]), i[time_axis]
        where: Sequence[Expr] = i
        turned = checked_index(select(t < length, length - 1 - t, t), n, wrap=False)
        return x[[turned if k == time_axis else v for k, v in enumerate(where)]]

    return compute(x.shape, element)
