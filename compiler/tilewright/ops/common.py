"""Building blocks that operators share: broadcasting, element-wise application, reductions, index
arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import OperatorError
from tilewright.loops.ir import (
    Apply,
    Cast,
    Expr,
    Operand,
    Select,
    apply,
    as_expr,
    dtype_of,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Tensor, compute


def fail(message: str) -> OperatorError:
    """An error about operands; the caller of the operator adds the node and the shapes."""
    return OperatorError(message)


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape all operands broadcast to."""
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*(tuple(s) for s in shapes)))
    except ValueError as e:
        raise fail(f"shapes {', '.join(map(str, shapes))} do not broadcast together") from e


def broadcast_index(index: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    """The index of an operand of `shape` for the element at `index` of the broadcast result."""
    tail = index[len(index) - len(shape) :]
    return [index_const(0) if n == 1 else i for i, n in zip(tail, shape, strict=True)]


def elementwise(
    function: Callable[..., Operand], *tensors: Tensor, dtype: DType | None = None
) -> Compute:
    """function applied to broadcast elements."""
    shape = broadcast_shape(*(t.shape for t in tensors))
    return compute(
        shape,
        lambda *i: function(*(t[broadcast_index(i, t.shape)] for t in tensors)),
        dtype=dtype or tensors[0].dtype,
    )


def view(x: Tensor, shape: Sequence[int], index: Callable[..., Sequence[Operand]]) -> Tensor:
    """The elements of x at another place: result[i] = x[index(i)]. x itself if that is the
    identity."""
    return compute(shape, lambda *i: x[tuple(index(*i))])


def reduce(
    op: ScalarOp,
    x: Tensor,
    axes: Sequence[int],
    keepdims: bool,
    element: Callable[[Expr], Expr] | None = None,
) -> Compute:
    """The reduction of element(x) over `axes` (0-based, distinct)."""
    kept = [k for k in range(x.rank) if k not in axes]
    shape = [1 if k in axes else n for k, n in enumerate(x.shape) if keepdims or k not in axes]
    reduced = sorted(axes)

    def value(*i: Expr) -> Expr:
        out, inner = i[: len(shape)], i[len(shape) :]
        at: list[Expr] = [index_const(0)] * x.rank
        for position, k in enumerate(reduced):
            at[k] = inner[position]
        for position, k in enumerate(kept):
            at[k] = out[k if keepdims else position]
        loaded = x[at]
        return element(loaded) if element else loaded

    return compute(shape, value, reduce=op, over=[x.shape[k] for k in reduced])


def normalize_axis(axis: int, rank: int) -> int:
    """A non-negative axis; an error if it is out of range."""
    if not -rank <= axis < max(rank, 1):
        raise fail(f"axis {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


def reshape_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x in C order under another shape; index expressions divide only inside dimensions that
    really merge or split."""
    target = tuple(int(n) for n in shape)
    if target == x.shape:
        return x
    if int(np.prod(target, dtype=np.int64)) != x.size:
        raise fail(f"shape {x.shape} cannot be reshaped to {target}")
    if x.size == 0:
        return compute(target, lambda *i: 0, dtype=x.dtype)
    groups = _reshape_groups(x.shape, target)
    return view(x, target, lambda *i: _reshape_index(groups, x.shape, target, i))


def _reshape_groups(
    source: Sequence[int], target: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Pairs of source and target dimensions that hold the same elements, smallest first cut."""
    a = [k for k, n in enumerate(source) if n != 1]
    b = [k for k, n in enumerate(target) if n != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while a or b:
        left, right = [a.pop(0)], [b.pop(0)]
        p, q = source[left[0]], target[right[0]]
        while p != q:
            if p < q:
                left.append(a.pop(0))
                p *= source[left[-1]]
            else:
                right.append(b.pop(0))
                q *= target[right[-1]]
        groups.append((left, right))
    return groups


def _reshape_index(
    groups: list[tuple[list[int], list[int]]],
    source: Sequence[int],
    target: Sequence[int],
    index: Sequence[Expr],
) -> list[Expr]:
    out: list[Expr] = [index_const(0)] * len(source)
    for left, right in groups:
        flat: Expr = index[right[0]]
        for k in right[1:]:
            flat = flat * target[k] + index[k]
        step = 1
        for k in reversed(left):
            digit: Expr = flat if step == 1 else flat // step
            out[k] = digit if k == left[0] else digit % source[k]
            step *= source[k]
    return out


def select(condition: Expr, then: Operand, otherwise: Operand) -> Select:
    """then where condition holds, else otherwise; only the chosen side is evaluated."""
    typed = then if not isinstance(then, (int, float, bool)) else otherwise
    dtype = dtype_of(as_expr(typed, DType.F32))
    return Select(condition, as_expr(then, dtype), as_expr(otherwise, dtype))


def cast(dtype: DType, value: Expr) -> Expr:
    """value converted to dtype."""
    return value if dtype_of(value) is dtype else Cast(dtype, value)


def maximum(a: Operand, b: Operand) -> Apply:
    return apply(ScalarOp.MAX, a, b)


def minimum(a: Operand, b: Operand) -> Apply:
    return apply(ScalarOp.MIN, a, b)


def inside(index: Expr, extent: int) -> Apply:
    """0 <= index < extent."""
    return (index >= 0) & (index < extent)


def checked_index(index: Expr, extent: int, *, wrap: bool = True) -> Expr:
    """An index that comes from data: negative ones count from the end if `wrap`; out of range is
    an error at run time."""
    wide = cast(DType.I64, index)
    shifted: Expr = select(wide < 0, wide + extent, wide) if wrap else wide
    return apply(ScalarOp.CHECK, shifted, extent)
