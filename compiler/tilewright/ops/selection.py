"""Operators whose results have a shape that only data decides, and those that sort: on the host.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import numpy as np

from tilewright.ops.common import fail, normalize_axis
from tilewright.ops.registry import host_op

Array = np.ndarray

FEW = 8  # fewer than one in so many elements wanted: the others are put aside before sorting


@host_op("NonZero")
def nonzero(x: Array) -> Array:
    """The indices of all elements that are not zero, one column each, in order."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    if x.dtype == object:
        x = x.astype(np.str_) != ""
    return np.array(np.nonzero(x), np.int64)


@host_op("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """The slices (of the flattened operand, if no axis is given) whose condition holds."""
    values = x.ravel() if axis is None else x
    at = 0 if axis is None else normalize_axis(axis, x.ndim)
    if condition.ndim != 1 or x.ndim == 0:
        raise fail(f"a condition of shape {condition.shape} for an operand of shape {x.shape}")
    chosen = np.flatnonzero(condition[: values.shape[at]])
    return np.take(values, chosen, axis=at)


@host_op("Unique")
def unique(
    x: Array, *, axis: int | None = None, sorted: int = 1
) -> tuple[Array, Array, Array, Array]:
    """Unique elements or slices, where each occurs first, which one each element is, and counts."""
    at = None if axis is None else normalize_axis(axis, x.ndim)
    keys = x.astype(np.str_) if x.dtype == object else x
    _, first, inverse, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True, axis=at
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first, inverse, counts = first[order], rank[inverse], counts[order]
    values = np.take(x.ravel() if at is None else x, first, axis=0 if at is None else at)
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


@host_op("TopK")
def top_k(
    x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """The k largest or smallest elements along an axis, and their indices; of equal elements the
    first comes first. The result is in order even where `sorted` does not ask for it.
    """
    count = int(k.reshape(()))
    at = normalize_axis(axis, x.ndim)
    if x.ndim == 0 or not 0 <= count <= x.shape[at]:
        raise fail(f"{count} elements cannot be chosen along axis {at} of shape {x.shape}")
    rows = np.moveaxis(x, at, -1)
    chosen = _in_order(rows, bool(largest), count)
    values = np.take_along_axis(rows, chosen, axis=-1)
    return np.moveaxis(values, -1, at), np.moveaxis(chosen, -1, at).astype(np.int64)


def _in_order(rows: Array, largest: bool, count: int) -> Array:
    """The indices of the first `count` elements of each row in the order asked for."""
    n = rows.shape[-1]
    if count * FEW >= n or rows.size > 64 * n:
        return _sorted(rows, largest)[..., :count]
    flat = [_among_best(row, largest, count) for row in rows.reshape(-1, n)]
    return np.array(flat, np.int64).reshape(*rows.shape[:-1], count)


def _sorted(rows: Array, largest: bool) -> Array:
    """A stable argsort, falling if `largest`; NaN counts as the greatest."""
    if not largest:
        return np.argsort(rows, axis=-1, kind="stable")
    backwards = np.argsort(rows[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    forwards: Array = rows.shape[-1] - 1 - backwards
    return forwards


def _among_best(row: Array, largest: bool, count: int) -> Array:
    """The same for one long row: all that are worse than the last wanted element drop out first."""
    if count == 0:
        return np.zeros(0, np.int64)
    rank = len(row) - count if largest else count - 1
    last = np.partition(row, rank)[rank]
    kept = np.flatnonzero(~(row < last) if largest else ~(row > last))
    best: Array = kept[_sorted(row[kept], largest)][:count]
    return best
