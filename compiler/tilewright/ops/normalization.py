"""Normalisations. Variances are means of squared deviations, in two passes; halves are summed in
float32.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.dtypes import DType, from_onnx
from tilewright.loops.ir import Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import (
    broadcast_shape,
    cast,
    elementwise,
    fail,
    inside,
    normalize_axis,
    reduce,
    reshape_to,
    select,
)
from tilewright.ops.operands import FLOATS, require, same_type
from tilewright.ops.reductions import converted, mean, square
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute

MVN_EPSILON = 1e-9  # of ONNX's definition of MeanVarianceNormalization


def _centred(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the deviations from it, and their mean square."""
    average = mean(x, axes, True)
    deviation = elementwise(lambda a, b: a - b, x, average)
    return average, deviation, mean(deviation, axes, True, square)


def _inverse_root(v: Expr, epsilon: float) -> Expr:
    return 1.0 / apply(ScalarOp.SQRT, v + epsilon)


def _stash(x: Tensor, stash_type: int) -> DType:
    """The type that statistics are computed in: never one less precise than x."""
    stash = from_onnx(stash_type)
    if not stash.is_float or not stash.is_native:
        raise fail(f"statistics of type {stash.name}: a float type is expected")
    return DType.F64 if DType.F64 in (x.dtype, stash) else DType.F32


def _normalized_axes(x: Tensor, axis: int, *parameters: Tensor) -> range:
    """The axes from `axis` on; an error unless the parameters broadcast to x."""
    if x.rank == 0:
        raise fail("a scalar has no axis")
    for p in parameters:
        if broadcast_shape(x.shape, p.shape) != x.shape:
            raise fail(f"a parameter of shape {p.shape} does not broadcast to {x.shape}")
    return range(normalize_axis(axis, x.rank), x.rank)


def _per_channel(x: Tensor, *parameters: Tensor) -> None:
    for p in parameters:
        if p.shape != (x.shape[1],):
            raise fail(f"a parameter of shape {p.shape} for {x.shape[1]} channels")


@op("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, ...]:
    parameters = [scale] if bias is None else [scale, bias]
    same_type(x, *parameters, kinds=FLOATS)
    axes = _normalized_axes(x, axis, *parameters)
    wide = converted(x, _stash(x, stash_type))
    average, deviation, variance = _centred(wide, axes)
    inverse = elementwise(lambda v: _inverse_root(v, epsilon), variance)

    def element(d: Expr, r: Expr, s: Expr, *b: Expr) -> Expr:
        scaled = cast(x.dtype, d * r) * s
        return scaled + b[0] if b else scaled

    result = elementwise(element, deviation, inverse, *parameters, dtype=x.dtype)
    statistics = from_onnx(stash_type)
    return result, converted(average, statistics), converted(inverse, statistics)


@op("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """The result has the type of `scale`."""
    require(FLOATS, x, scale)
    axes = _normalized_axes(x, axis, scale)
    wide = converted(x, _stash(x, stash_type))
    power = mean(wide, axes, True, square)

    def element(v: Expr, p: Expr, s: Expr) -> Expr:
        normal = cast(x.dtype, v * _inverse_root(p, epsilon))
        return cast(scale.dtype, normal) * s

    return elementwise(element, wide, power, scale, dtype=scale.dtype)


@op("InstanceNormalization")
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    same_type(x, scale, bias, kinds=FLOATS)
    if x.rank < 3:
        raise fail(f"rank 3 or more is expected, not {x.rank}")
    _per_channel(x, scale, bias)
    wide = converted(x, x.dtype.compute)
    _, deviation, variance = _centred(wide, range(2, x.rank))
    normal = elementwise(lambda d, v: d * _inverse_root(v, epsilon), deviation, variance)
    return converted(_scaled(normal, scale, bias), x.dtype)


def _scaled(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x times scale plus bias, of which there is one for each channel."""
    return compute(
        x.shape, lambda *i: x[i] * cast(x.dtype, scale[i[1]]) + cast(x.dtype, bias[i[1]])
    )


@op("GroupNormalization")
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    same_type(x, scale, bias, kinds=FLOATS)
    if x.rank < 2:
        raise fail(f"rank 2 or more is expected, not {x.rank}")
    _per_channel(x, scale, bias)
    n, channels = x.shape[:2]
    if num_groups < 1 or channels % num_groups:
        raise fail(f"{channels} channels cannot be cut into {num_groups} groups")
    wide, per = converted(x, _stash(x, stash_type)), channels // num_groups
    grouped = reshape_to(wide, (n, num_groups, per, *x.shape[2:]))
    average, _, variance = _centred(grouped, range(2, grouped.rank))
    single = [0] * (x.rank - 1)

    def element(*i: Expr) -> Expr:
        group = [i[0], i[1] // per if per > 1 else i[1], *single]
        return (wide[i] - average[group]) * _inverse_root(variance[group], epsilon)

    return converted(_scaled(compute(x.shape, element), scale, bias), x.dtype)


@op("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    average: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Tensor, ...]:
    """In training mode the statistics are those of x, and the given ones move towards them."""
    require(FLOATS, x, scale, bias, average, variance)
    if x.rank == 0:
        raise fail("a scalar has no channels")
    rows = reshape_to(x, (x.shape[0], 1)) if x.rank == 1 else x
    _per_channel(rows, scale, bias, average, variance)
    wide = converted(rows, rows.dtype.compute)
    used, moved = (average, variance), []
    if training_mode:
        used = _channel_statistics(wide)
        moved = [_moved(t, new, momentum) for t, new in zip((average, variance), used)]
    result = converted(_batch_normalized(wide, scale, bias, *used, epsilon), x.dtype)
    return reshape_to(result, x.shape), *moved


def _batch_normalized(
    x: Tensor, scale: Tensor, bias: Tensor, average: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    """One product and one sum for each element."""
    s, b, m, v = (converted(t, x.dtype) for t in (scale, bias, average, variance))
    factor = elementwise(lambda g, d: g * _inverse_root(d, epsilon), s, v)
    offset = elementwise(lambda c, a, f: c - a * f, b, m, factor)
    return compute(x.shape, lambda *i: x[i] * factor[i[1]] + offset[i[1]])


def _channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    average, _, variance = _centred(x, [k for k in range(x.rank) if k != 1])
    channels = (x.shape[1],)
    return reshape_to(average, channels), reshape_to(variance, channels)


def _moved(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """A running statistic after one step."""
    wide = converted(old, new.dtype)
    step = elementwise(lambda a, b: a * momentum + b * (1 - momentum), wide, new)
    return converted(step, old.dtype)


@op("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Where the norm is 0, so is the result."""
    require(FLOATS, x)
    if p not in (1, 2) or x.rank == 0:
        raise fail(f"p={p} for rank {x.rank}: 1 or 2 is expected, of an array")
    at, wide = normalize_axis(axis, x.rank), converted(x, x.dtype.compute)
    powers = elementwise(lambda v: v * v if p == 2 else apply(ScalarOp.ABS, v), wide)
    total = reduce(ScalarOp.ADD, powers, [at], True)
    norm = elementwise(lambda v: apply(ScalarOp.SQRT, v), total) if p == 2 else total
    quotient = elementwise(lambda v, n: select(n.eq(0.0), 0.0, v / n), wide, norm)
    return converted(quotient, x.dtype)


@op("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    require(FLOATS, x)
    chosen = sorted({normalize_axis(a, x.rank) for a in axes}) if x.rank else []
    _, deviation, variance = _centred(converted(x, x.dtype.compute), chosen)
    normal = elementwise(
        lambda d, v: d / (apply(ScalarOp.SQRT, v) + MVN_EPSILON), deviation, variance
    )
    return converted(normal, x.dtype)


@op("LRN")
def lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    require(FLOATS, x)
    if x.rank < 2 or size < 1:
        raise fail(f"rank {x.rank} and size {size}: at least 2 and 1 are expected")
    before, channels, wide = (size - 1) // 2, x.shape[1], converted(x, x.dtype.compute)

    def squared(*i: Expr) -> Expr:
        c = i[1] + i[-1] - before
        value = wide[[i[0], c, *i[2:-1]]]
        return select(inside(c, channels), square(value), 0)

    total = compute(x.shape, squared, reduce=ScalarOp.ADD, over=[size])
    result = elementwise(
        lambda v, t: v / apply(ScalarOp.POW, t * (alpha / size) + bias, beta), wide, total
    )
    return converted(result, x.dtype)
