"""MaxPool, AveragePool, LpPool, their global forms and MaxUnpool."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Block, Expr, For, Stmt, Store, Var, apply, as_expr, index_const
from tilewright.loops.scalars import ScalarOp, identity
from tilewright.ops.common import checked_index, fail, minimum, select
from tilewright.ops.registry import op
from tilewright.ops.tensor import (
    Compute,
    NestOutput,
    Tensor,
    compute,
    constant,
    fresh_axis,
    known_ints,
    nest,
)
from tilewright.ops.windows import (
    Window,
    both_sides,
    guard,
    per_dimension,
    require_spatial,
    windows,
)


@op("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs: int = 1,
) -> tuple[Tensor | None, ...]:
    """The greatest element of each window, and where it is: its position in the whole of x,
    flattened.

    https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    require_spatial("MaxPool", x.shape)
    dims = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    greatest = _pool(x, dims, ScalarOp.MAX, lambda e: e)
    return (
        greatest,
        _first_position(x, greatest, dims, bool(storage_order)) if outputs > 1 else None,
    )


def _pool(
    x: Tensor, dims: Sequence[Window], monoid: ScalarOp, function: Callable[[Expr], Expr]
) -> Compute:
    """The reduction of function(x) over each window; what lies outside counts as the monoid's
    identity.
    """
    rank = len(dims)

    def element(n: Expr, c: Expr, *axes: Expr) -> Expr:
        positions = [d.at(o, k) for d, o, k in zip(dims, axes[:rank], axes[rank:], strict=True)]
        value = function(x[(n, c, *positions)])
        condition = guard(dims, positions)
        return value if condition is None else select(condition, value, identity(monoid, x.dtype))

    shape = (*x.shape[:2], *(d.out for d in dims))
    return compute(shape, element, reduce=monoid, over=[d.kernel for d in dims], channels_last=True)


def _first_position(
    x: Tensor, greatest: Tensor, dims: Sequence[Window], column_major: bool
) -> Compute:
    """The flat position of the first greatest element in each window; a NaN is the greatest."""
    rank = len(dims)
    nowhere = int(identity(ScalarOp.MIN, DType.I64))

    def element(n: Expr, c: Expr, *axes: Expr) -> Expr:
        out = axes[:rank]
        positions = [d.at(o, k) for d, o, k in zip(dims, out, axes[rank:], strict=True)]
        value = x[(n, c, *positions)]
        found: Expr = value.eq(greatest[(n, c, *out)])
        if x.dtype.is_float:
            found = found | apply(ScalarOp.ISNAN, value)
        chosen = select(found, _flat((n, c, *positions), x.shape), nowhere)
        condition = guard(dims, positions)
        return chosen if condition is None else select(condition, chosen, nowhere)

    over = [d.kernel for d in dims]
    first = compute(greatest.shape, element, reduce=ScalarOp.MIN, over=over, channels_last=True)
    return _column_major(first, x.shape) if column_major else first


def _flat(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """The position in C order."""
    total = index[0]
    for i, n in zip(index[1:], shape[1:], strict=True):
        total = total * n + i
    return total


def _column_major(first: Compute, shape: Sequence[int]) -> Compute:
    """Positions in C order as positions in images that are stored column by column."""

    def element(*i: Expr) -> Expr:
        rest: Expr = first[i]
        digits: list[Expr] = []
        for n in reversed(shape[2:]):
            digits.append(rest % n)
            rest = rest // n
        return _flat((rest, *digits), (1, *reversed(shape[2:])))

    return compute(first.shape, element, channels_last=True)


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean of each window, of the elements inside x or also of the padding.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    require_spatial("AveragePool", x.shape)
    dims = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    total = _pool(x, dims, ScalarOp.ADD, lambda e: e)
    counts = [_counts(d, bool(count_include_pad)) for d in dims]
    uniform = math.prod(int(c[0]) for c in counts if c.min() == c.max())
    tables = {k: constant(c, x.dtype) for k, c in enumerate(counts) if c.min() != c.max()}

    def element(*i: Expr) -> Expr:
        factors: list[Expr] = [table[i[2 + k]] for k, table in tables.items()]
        if uniform != 1 or not factors:
            factors.append(as_expr(uniform, x.dtype))
        return total[i] / functools.reduce(operator.mul, factors)

    return compute(total.shape, element, channels_last=True)


def _counts(d: Window, with_padding: bool) -> np.ndarray:
    """How many elements each window has in this dimension, inside the input or also its padding."""
    low, high = (-d.before, d.extent + d.after) if with_padding else (0, d.extent)
    start = np.arange(d.out, dtype=np.int64) * d.stride - d.before
    first = np.maximum(
        -((start - low) // d.dilation), 0
    )  # the least k with start + k * dilation >= low
    last = np.minimum((high - 1 - start) // d.dilation, d.kernel - 1)
    counts: np.ndarray = np.maximum(last - first + 1, 0)
    return counts


@op("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window. https://onnx.ai/onnx/operators/onnx__LpPool.html"""
    require_spatial("LpPool", x.shape)
    dims = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    return _root(_pool(x, dims, ScalarOp.ADD, _power(p)), p)


def _power(p: int) -> Callable[[Expr], Expr]:
    """|e| to the power of p."""
    if p < 1:
        raise fail(f"a norm needs p >= 1, not {p}")
    if p == 2:
        return lambda e: e * e
    if p == 1:
        return lambda e: apply(ScalarOp.ABS, e)
    return lambda e: apply(ScalarOp.POW, apply(ScalarOp.ABS, e), float(p))


def _root(total: Compute, p: int) -> Tensor:
    if p == 1:
        return total

    def element(*i: Expr) -> Expr:
        e = total[i]
        return apply(ScalarOp.SQRT, e) if p == 2 else apply(ScalarOp.POW, e, 1.0 / p)

    return compute(total.shape, element, channels_last=True)


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean over all spatial dimensions.
    https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html
    """
    total = _whole("GlobalAveragePool", x, ScalarOp.ADD, lambda e: e)
    return compute(total.shape, lambda *i: total[i] / math.prod(x.shape[2:]), channels_last=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The greatest element over all spatial dimensions.
    https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html
    """
    return _whole("GlobalMaxPool", x, ScalarOp.MAX, lambda e: e)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over all spatial dimensions.
    https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html
    """
    return _root(_whole("GlobalLpPool", x, ScalarOp.ADD, _power(p)), p)


def _whole(name: str, x: Tensor, monoid: ScalarOp, function: Callable[[Expr], Expr]) -> Compute:
    """The reduction of function(x) over all spatial dimensions, kept with extent one."""
    require_spatial(name, x.shape)
    ones = (1,) * (x.rank - 2)

    def element(n: Expr, c: Expr, *axes: Expr) -> Expr:
        return function(x[(n, c, *axes[len(ones) :])])

    shape = (*x.shape[:2], *ones)
    return compute(shape, element, reduce=monoid, over=x.shape[2:], channels_last=True)


@op("MaxUnpool")
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Each element at the flat position that MaxPool found it in, zeros elsewhere. The positions
    count in the shape that follows from the attributes; a greater `output_shape` adds zeros behind
    it.

    https://onnx.ai/onnx/operators/onnx__MaxUnpool.html
    """
    require_spatial("MaxUnpool", x.shape)
    if indices.shape != x.shape:
        raise fail(f"indices of shape {indices.shape} do not fit values of shape {x.shape}")
    rank = x.rank - 2
    kernel = per_dimension("kernel_shape", kernel_shape, rank, 1)
    steps, sides = per_dimension("strides", strides, rank, 1), both_sides(pads, rank)
    spatial = [
        (n - 1) * s - sum(p) + k
        for n, s, p, k in zip(x.shape[2:], steps, sides, kernel, strict=True)
    ]
    if min(spatial) < 1:
        raise fail(f"the result would have the spatial extents {tuple(spatial)}")
    inner = (*x.shape[:2], *spatial)
    scattered = nest(
        [((math.prod(inner),), x.dtype)], lambda y: _scatter(x, indices, y), "MaxUnpool"
    )[0]
    wanted = tuple(known_ints(output_shape)) if output_shape is not None else inner
    return _placed(scattered, inner, wanted)


def _scatter(x: Tensor, indices: Tensor, y: NestOutput) -> Stmt:
    """y[indices] = x, zero elsewhere."""
    cell, axes = fresh_axis(), [fresh_axis() for _ in x.shape]
    at = tuple(Var(a) for a in axes)
    body: Stmt = Store(y, (checked_index(indices[at], y.shape[0], wrap=False),), x[at])
    for axis, n in zip(reversed(axes), reversed(x.shape), strict=True):
        body = For(axis, index_const(n), body)
    return Block(
        (For(cell, index_const(y.shape[0]), Store(y, (Var(cell),), as_expr(0, x.dtype))), body)
    )


def _placed(flat: Tensor, inner: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """The flat elements in the shape `inner`, at the start of a tensor of the shape `wanted`."""
    if len(wanted) != len(inner) or any(w < n for w, n in zip(wanted, inner, strict=True)):
        raise fail(f"the output_shape {tuple(wanted)} is less than {tuple(inner)}")

    def element(*i: Expr) -> Expr:
        position: Expr = index_const(0)
        for axis, n, w in zip(i, inner, wanted, strict=True):
            position = position * n + (axis if n == w else minimum(axis, n - 1))
        value: Expr = flat[position]
        for axis, n, w in zip(i, inner, wanted, strict=True):
            value = value if n == w else select(axis < n, value, 0)
        return value

    return compute(wanted, element)
