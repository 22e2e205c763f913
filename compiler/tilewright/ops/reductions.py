"""Reductions over axes, positions of extrema, running sums.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tilewright.dtypes import DType
from tilewright.loops.ir import Block as Sequential
from tilewright.loops.ir import (
    Const,
    Expr,
    For,
    Load,
    LoopKind,
    Select,
    Stmt,
    Store,
    Var,
    apply,
    index_const,
)
from tilewright.loops.scalars import ScalarOp, identity
from tilewright.ops.common import (
    cast,
    elementwise,
    fail,
    normalize_axis,
    reduce,
    reshape_to,
    select,
)
from tilewright.ops.operands import NATIVE, NUMBERS, require
from tilewright.ops.registry import op
from tilewright.ops.tensor import NestOutput, Tensor, compute, fresh_axis, known_ints, nest

Scalar = Callable[[Expr], Expr]


def axes_of(x: Tensor, axes: Tensor | None, noop: int) -> list[int]:
    """The reduced axes; none if the operator combines no elements."""
    given = known_ints(axes) if axes is not None and axes.size else []
    if not given:
        return [] if noop else list(range(x.rank))
    chosen = {normalize_axis(a, x.rank) for a in given}
    return sorted(chosen) if x.rank else []


def converted(x: Tensor, dtype: DType) -> Tensor:
    """x, its elements converted to dtype."""
    return x if x.dtype is dtype else elementwise(lambda v: cast(dtype, v), x)


def statistic_type(dtype: DType) -> DType:
    """The type that sums which are not themselves the result are kept in."""
    return DType.F64 if dtype.is_integer else dtype.compute


def combine(
    monoid: ScalarOp, x: Tensor, axes: Sequence[int], keepdims: bool, before: Scalar | None = None
) -> Tensor:
    """The reduction of before(x) over axes; just before(x) if there are none."""
    if axes:
        return reduce(monoid, x, axes, keepdims, before)
    return elementwise(before, x) if before else x


def _reduction(monoid: ScalarOp, kinds: str, before: Scalar | None = None) -> Callable[..., Tensor]:
    def function(
        x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        require(kinds, x)
        chosen = axes_of(x, axes, noop_with_empty_axes)
        return combine(monoid, x, chosen, bool(keepdims), before)

    return function


def _function_of_sum(after: Scalar, before: Scalar | None = None) -> Callable[..., Tensor]:
    def function(
        x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        require(NUMBERS, x)
        chosen = axes_of(x, axes, noop_with_empty_axes)
        wide = converted(x, statistic_type(x.dtype))
        total = combine(ScalarOp.ADD, wide, chosen, bool(keepdims), before)
        return converted(elementwise(after, total), x.dtype)

    return function


def _log(v: Expr) -> Expr:
    return apply(ScalarOp.LOG, v)


def _sqrt(v: Expr) -> Expr:
    return apply(ScalarOp.SQRT, v)


def square(v: Expr) -> Expr:
    return v * v


def _abs(v: Expr) -> Expr:
    return apply(ScalarOp.ABS, v)


op("ReduceSum")(_reduction(ScalarOp.ADD, NUMBERS))
op("ReduceProd")(_reduction(ScalarOp.MUL, NUMBERS))
op("ReduceMax")(_reduction(ScalarOp.MAX, NATIVE))
op("ReduceMin")(_reduction(ScalarOp.MIN, NATIVE))
op("ReduceL1")(_reduction(ScalarOp.ADD, NUMBERS, _abs))
op("ReduceSumSquare")(_reduction(ScalarOp.ADD, NUMBERS, square))
op("ReduceL2")(_function_of_sum(_sqrt, square))
op("ReduceLogSum")(_function_of_sum(_log))


@op("ReduceMean")
def reduce_mean(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    require(NUMBERS, x)
    return mean(x, axes_of(x, axes, noop_with_empty_axes), bool(keepdims))


def mean(x: Tensor, axes: Sequence[int], keepdims: bool, before: Scalar | None = None) -> Tensor:
    """The mean of before(x) over axes; that of integers is truncated, and 0 where there are
    none."""
    total = combine(ScalarOp.ADD, converted(x, x.dtype.compute), axes, keepdims, before)
    if not axes:
        return converted(total, x.dtype)
    count = prod(x.shape[a] for a in axes)
    if x.dtype.is_integer:
        return elementwise(lambda v: v / max(count, 1), total)
    if count == 0:
        return elementwise(lambda v: v / 0.0, converted(total, x.dtype))
    return converted(elementwise(lambda v: v * (1.0 / count), total), x.dtype)


@op("ReduceLogSumExp")
def reduce_log_sum_exp(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Exponentials of differences from the maximum, so that none of them overflows."""
    require(NUMBERS, x)
    chosen = axes_of(x, axes, noop_with_empty_axes)
    if not chosen:
        return x
    wide = converted(x, statistic_type(x.dtype))
    top = elementwise(finite, reduce(ScalarOp.MAX, wide, chosen, True))
    powers = elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), wide, top)
    total = elementwise(lambda s, b: _log(s) + b, reduce(ScalarOp.ADD, powers, chosen, True), top)
    shape = [1 if k in chosen else n for k, n in enumerate(x.shape) if keepdims or k not in chosen]
    return converted(reshape_to(total, shape), x.dtype)


def finite(v: Expr) -> Expr:
    """v, or 0 where it is infinite."""
    return select(apply(ScalarOp.ISINF, v), 0.0, v)


@op("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _position(ScalarOp.MAX, x, axis, keepdims, select_last_index)


@op("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _position(ScalarOp.MIN, x, axis, keepdims, select_last_index)


def _position(extremum: ScalarOp, x: Tensor, axis: int, keepdims: int, last: int) -> Tensor:
    """Where the extremum is: the least (or greatest) index at which the element equals it. NaN
    counts as extreme."""
    require(NUMBERS, x)
    at = normalize_axis(axis, x.rank)
    if x.rank == 0:
        return compute((), lambda: index_const(0))
    n = x.shape[at]
    if n == 0:
        raise fail(f"there are no elements along axis {at}")
    best = reduce(extremum, x, [at], True)
    shape = [1 if k == at else m for k, m in enumerate(x.shape) if keepdims or k != at]

    def element(*i: Expr) -> Expr:
        r, out = i[-1], list(i[:-1])
        if not keepdims:
            out.insert(at, index_const(0))
        out[at] = index_const(0)
        value, top = x[[*out[:at], r, *out[at + 1 :]]], best[out]
        hit = value.eq(top)
        if x.dtype.is_float:
            hit = hit | apply(ScalarOp.ISNAN, value)
        return Select(hit, r, index_const(-1 if last else n))

    return compute(shape, element, reduce=ScalarOp.MAX if last else ScalarOp.MIN, over=[n])


@op("CumSum")
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(ScalarOp.ADD, x, axis, exclusive, reverse)


@op("CumProd")
def cum_prod(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(ScalarOp.MUL, x, axis, exclusive, reverse)


def _running(monoid: ScalarOp, x: Tensor, axis: Tensor, exclusive: int, reverse: int) -> Tensor:
    require(NUMBERS, x)
    if axis.size != 1 or x.rank == 0:
        raise fail(f"one axis of rank 1 or more is expected, not {axis.size} of rank {x.rank}")
    at = normalize_axis(known_ints(axis)[0], x.rank)
    if x.size == 0:
        return x
    wide = converted(x, x.dtype.compute)
    (made,) = nest(
        [(x.shape, wide.dtype)],
        lambda out: _running_body(monoid, wide, out, at, bool(exclusive), bool(reverse)),
    )
    return converted(made, x.dtype)


def _running_body(
    monoid: ScalarOp, x: Tensor, out: NestOutput, at: int, exclusive: bool, reverse: bool
) -> Stmt:
    """Each element from the one before it. The innermost loop runs along the last axis, where
    memory is contiguous; it is the running one only if that is the last axis itself."""
    names = [fresh_axis() for _ in x.shape]
    end = x.shape[at] - 1

    def index(step: Expr) -> tuple[Expr, ...]:
        along = index_const(end) - step if reverse else step
        return tuple(along if k == at else Var(a) for k, a in enumerate(names))

    first, before, after = index_const(0), Var(names[at]), Var(names[at]) + 1
    start = Const(identity(monoid, x.dtype), x.dtype) if exclusive else Load(x, index(first))
    added = Load(x, index(before if exclusive else after))
    value = apply(monoid, Load(out, index(before)), added)
    inner = [x.rank - 1] if at != x.rank - 1 else []
    outer = [k for k in range(x.rank) if k != at and k not in inner]
    begin = _loops(Store(out, index(first), start), names, x.shape, inner)
    go_on = _loops(Store(out, index(after), value), names, x.shape, inner)
    running = Sequential((begin, For(names[at], index_const(end), go_on)))
    return _loops(running, names, x.shape, outer, LoopKind.PARALLEL)


def _loops(
    body: Stmt,
    names: Sequence[str],
    extents: Sequence[int],
    axes: Sequence[int],
    outermost: LoopKind = LoopKind.SERIAL,
) -> Stmt:
    """body for each index along the given axes, the first of them outermost."""
    for k in reversed(axes):
        kind = outermost if k == axes[0] else LoopKind.SERIAL
        body = For(names[k], index_const(extents[k]), body, kind)
    return body
