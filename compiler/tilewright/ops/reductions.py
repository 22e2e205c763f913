"""Reductions over axes, positions of extrema, running sums.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Buffer,
    Const,
    Expr,
    For,
    Load,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    apply,
    index_const,
)
from tilewright.loops.ir import Block as Sequential
from tilewright.loops.scalars import ScalarOp, identity
from tilewright.ops.common import cast, elementwise, normalize_axis, reduce, select
from tilewright.ops.registry import op
from tilewright.ops.tensor import NestOutput, Tensor, compute, fresh_axis, known_ints, nest

Scalar = Callable[[Expr], Expr]


def axes_of(x: Tensor, axes: Tensor | None, noop: int) -> list[int] | None:
    """The reduced axes; None if the operator does nothing across elements."""
    given = known_ints(axes) if axes is not None else []
    if not given:
        return None if noop else list(range(x.rank))
    return sorted({normalize_axis(a, x.rank) for a in given})


def _reduction(
    monoid: ScalarOp, before: Scalar | None = None, after: Scalar | None = None
) -> Callable[..., Tensor]:
    def function(
        x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = axes_of(x, axes, noop_with_empty_axes)
        if chosen is None:
            result: Tensor = elementwise(before, x) if before else x
        else:
            result = reduce(monoid, x, chosen, bool(keepdims), before)
        return elementwise(after, result) if after else result

    return function


def _log(v: Expr) -> Expr:
    return apply(ScalarOp.LOG, v)


def _sqrt(v: Expr) -> Expr:
    return apply(ScalarOp.SQRT, v)


def _square(v: Expr) -> Expr:
    return v * v


def _abs(v: Expr) -> Expr:
    return apply(ScalarOp.ABS, v)


reduce_sum = op("ReduceSum")(_reduction(ScalarOp.ADD))
reduce_prod = op("ReduceProd")(_reduction(ScalarOp.MUL))
reduce_max = op("ReduceMax")(_reduction(ScalarOp.MAX))
reduce_min = op("ReduceMin")(_reduction(ScalarOp.MIN))
reduce_l1 = op("ReduceL1")(_reduction(ScalarOp.ADD, _abs))
reduce_sum_square = op("ReduceSumSquare")(_reduction(ScalarOp.ADD, _square))
reduce_log_sum = op("ReduceLogSum")(_reduction(ScalarOp.ADD, None, _log))


@op("ReduceL2")
def reduce_l2(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    total = reduce_sum_square(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)
    return elementwise(lambda v: rounded_sqrt(v, x.dtype), total)


def rounded_sqrt(v: Expr, dtype: DType) -> Expr:
    """The root of an element, by way of float64 for integers."""
    return _sqrt(v) if dtype.is_float else cast(dtype, _sqrt(cast(DType.F64, v)))


@op("ReduceMean")
def reduce_mean(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    chosen = axes_of(x, axes, noop_with_empty_axes)
    return x if chosen is None else mean(x, chosen, bool(keepdims))


def mean(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    """The mean over axes, of integers too."""
    count = prod(x.shape[a] for a in axes)
    total = reduce(ScalarOp.ADD, x, axes, keepdims)
    if x.dtype.is_float and count:
        return elementwise(lambda v: v * (1.0 / count), total)
    return elementwise(lambda v: v / count, total)


@op("ReduceLogSumExp")
def reduce_log_sum_exp(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    chosen = axes_of(x, axes, noop_with_empty_axes)
    if chosen is None:
        return x
    top = elementwise(finite, reduce(ScalarOp.MAX, x, chosen, True))
    powers = elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    total = elementwise(lambda s, b: _log(s) + b, reduce(ScalarOp.ADD, powers, chosen, True), top)
    if keepdims:
        return total
    kept = [k for k in range(x.rank) if k not in chosen]
    zero = index_const(0)
    return compute(
        [x.shape[k] for k in kept],
        lambda *i: total[[i[kept.index(k)] if k in kept else zero for k in range(x.rank)]],
    )


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
    at = normalize_axis(axis, x.rank)
    if x.rank == 0:
        return compute((), lambda: index_const(0))
    best = reduce(extremum, x, [at], True)
    n = x.shape[at]
    shape = [1 if k == at else m for k, m in enumerate(x.shape) if keepdims or k != at]

    def element(*i: Expr) -> Expr:
        r, out = i[-1], list(i[:-1])
        if not keepdims:
            out.insert(at, index_const(0))
        value, top = x[[r if k == at else v for k, v in enumerate(out)]], best[out]
        hit = value.eq(top)
        if x.dtype.is_float:
            hit = hit | apply(ScalarOp.ISNAN, value)
        return Select(hit, r, index_const(-1 if last else n))

    found = compute(shape, element, reduce=ScalarOp.MAX if last else ScalarOp.MIN, over=[n])
    return found


@op("CumSum")
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(ScalarOp.ADD, x, axis, exclusive, reverse)


@op("CumProd")
def cum_prod(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(ScalarOp.MUL, x, axis, exclusive, reverse)


def _running(monoid: ScalarOp, x: Tensor, axis: Tensor, exclusive: int, reverse: int) -> Tensor:
    at = normalize_axis(known_ints(axis)[0], x.rank)
    if x.dtype.compute is not x.dtype:
        raise UnsupportedError("running sums of half-precision numbers")
    return nest(
        [(x.shape, x.dtype)], lambda out: _running_body(monoid, x, out, at, exclusive, reverse)
    )[0]


def _running_body(
    monoid: ScalarOp, x: Tensor, out: NestOutput, at: int, exclusive: int, reverse: int
) -> Stmt:
    total = Buffer(fresh_axis("s"), x.dtype, (), space=Space.LOCAL)
    axes = [fresh_axis() for _ in x.shape]
    step = Var(axes[at])
    where: Expr = index_const(x.shape[at] - 1) - step if reverse else step
    index = tuple(where if k == at else Var(a) for k, a in enumerate(axes))
    add = Accumulate(total, (), monoid, Load(x, index))
    put = Store(out, index, Load(total, ()))
    body: Stmt = For(
        axes[at], index_const(x.shape[at]), Sequential((put, add) if exclusive else (add, put))
    )
    start = Store(total, (), Const(identity(monoid, x.dtype), x.dtype))
    body = Alloc(total, Sequential((start, body)))
    for k in reversed(range(x.rank)):
        if k != at:
            body = For(axes[k], index_const(x.shape[k]), body)
    return body
