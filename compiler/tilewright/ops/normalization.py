"""Normalisations. Variances are means of squared deviations, in two passes; halves are summed in
float32.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import (
    cast,
    elementwise,
    fail,
    inside,
    normalize_axis,
    reduce,
    reshape_to,
    select,
)
from tilewright.ops.reductions import mean
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in (DType.F32, DType.F64) else elementwise(lambda v: cast(DType.F32, v), x)


def _narrowed(x: Tensor, dtype: DType) -> Tensor:
    return x if x.dtype is dtype else elementwise(lambda v: cast(dtype, v), x)


def _centred(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the deviations from it, and their mean square."""
    average = mean(x, axes, True)
    deviation = elementwise(lambda a, b: a - b, x, average)
    square = elementwise(lambda d: d * d, deviation)
    return average, deviation, mean(square, axes, True)


def _inverse_root(v: Expr, epsilon: float) -> Expr:
    return 1.0 / apply(ScalarOp.SQRT, v + epsilon)


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
    at = normalize_axis(axis, x.rank)
    wide = _widened(x)
    average, deviation, variance = _centred(wide, range(at, x.rank))
    inverse = elementwise(lambda v: _inverse_root(v, epsilon), variance)
    normal = _narrowed(elementwise(lambda d, r: d * r, deviation, inverse), x.dtype)
    scaled = elementwise(lambda v, s: v * s, normal, scale)
    result = elementwise(lambda v, b: v + b, scaled, bias) if bias is not None else scaled
    return result, average, inverse


@op("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    at = normalize_axis(axis, x.rank)
    wide = _widened(x)
    square = mean(elementwise(lambda v: v * v, wide), list(range(at, x.rank)), True)
    normal = elementwise(lambda v, s: v * _inverse_root(s, epsilon), wide, square)
    return elementwise(lambda v, s: v * s, _narrowed(normal, x.dtype), scale)


@op("InstanceNormalization")
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    if x.rank < 3:
        raise fail(f"rank 3 or more is expected, not {x.rank}")
    wide = _widened(x)
    _, deviation, variance = _centred(wide, range(2, x.rank))
    normal = elementwise(lambda d, v: d * _inverse_root(v, epsilon), deviation, variance)
    per_channel = (1, x.shape[1], *[1] * (x.rank - 2))
    s, b = (_widened(reshape_to(t, per_channel)) for t in (scale, bias))
    return _narrowed(elementwise(lambda v, g, c: v * g + c, normal, s, b), x.dtype)


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
    n, c = x.shape[:2]
    if c % num_groups:
        raise fail(f"{c} channels cannot be cut into {num_groups} groups")
    rows = reshape_to(_widened(x), (n, num_groups, c // num_groups * prod(x.shape[2:])))
    _, deviation, variance = _centred(rows, [2])
    normal = elementwise(lambda d, v: d * _inverse_root(v, epsilon), deviation, variance)
    per_channel = (1, c, *[1] * (x.rank - 2))
    s, b = (_widened(reshape_to(t, per_channel)) for t in (scale, bias))
    whole = reshape_to(normal, x.shape)
    return _narrowed(elementwise(lambda v, g, o: v * g + o, whole, s, b), x.dtype)


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
) -> Tensor:
    if training_mode:
        raise UnsupportedError("BatchNormalization in training mode")
    wide = _widened(x)
    factor = elementwise(
        lambda s, v: cast(wide.dtype, s) * _inverse_root(cast(wide.dtype, v), epsilon),
        scale,
        variance,
    )
    offset = elementwise(
        lambda b, m, f: cast(wide.dtype, b) - cast(wide.dtype, m) * f, bias, average, factor
    )
    channel = 1 if x.rank > 1 else 0
    result = compute(x.shape, lambda *i: wide[i] * factor[i[channel]] + offset[i[channel]])
    return _narrowed(result, x.dtype)


@op("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    at = normalize_axis(axis, x.rank)
    powers = elementwise(lambda v: v * v if p == 2 else apply(ScalarOp.ABS, v), x)
    total = reduce(ScalarOp.ADD, powers, [at], True)
    norm = elementwise(lambda v: apply(ScalarOp.SQRT, v), total) if p == 2 else total
    return elementwise(lambda v, n: select(n.eq(0.0), 0.0, v / n), x, norm)


@op("LRN")
def lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    before, channels = (size - 1) // 2, x.shape[1]

    def square(*i: Expr) -> Expr:
        c = i[1] + i[-1] - before
        index = [c if k == 1 else v for k, v in enumerate(i[:-1])]
        return select(inside(c, channels), x[index] * x[index], 0)

    total = compute(x.shape, square, reduce=ScalarOp.ADD, over=[size])
    return elementwise(
        lambda v, t: v / apply(ScalarOp.POW, t * (alpha / size) + bias, beta), x, total
    )
