"""Quantisation: per tensor, per axis or per block.

Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.dtypes import DType, from_onnx
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Apply, Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import (
    cast,
    elementwise,
    fail,
    maximum,
    minimum,
    normalize_axis,
    reduce,
    reshape_to,
    select,
)
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute

Index = Callable[[Sequence[Expr]], list[Operand]]


def _parameter_index(x: Tensor, scale: Tensor, axis: int, block: int) -> Index:
    """Where the scale of the element at an index is."""
    if scale.size == 1 and scale.rank <= 1:
        return lambda i: [0]
    at = normalize_axis(axis, x.rank)
    if scale.rank == 1:
        if scale.shape[0] != x.shape[at]:
            raise fail(f"{scale.shape[0]} scales for {x.shape[at]} elements along axis {at}")
        return lambda i: [i[at]]
    if scale.rank != x.rank or not block or -(-x.shape[at] // block) != scale.shape[at]:
        raise fail(f"scales of shape {scale.shape} do not fit {x.shape} in blocks of {block}")
    return lambda i: [v // block if k == at else v for k, v in enumerate(i)]


def _vector(t: Tensor) -> Tensor:
    """A scalar as a vector of one, so that parameters are read alike."""
    return reshape_to(t, (1,)) if t.rank == 0 else t


def _quantized_type(zero_point: Tensor | None, output_dtype: int) -> DType:
    dtype = (
        zero_point.dtype
        if zero_point is not None
        else from_onnx(output_dtype)
        if output_dtype
        else DType.U8
    )
    if not dtype.is_integer or not dtype.is_native:
        raise UnsupportedError(f"quantisation to {dtype.name}")
    return dtype


@op("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Tensor:
    dtype = _quantized_type(zero_point, output_dtype)
    where = _parameter_index(x, scale, axis, block_size)
    wide = scale.dtype if scale.dtype.is_float else DType.F32
    scale, zero_point = _vector(scale), _vector(zero_point) if zero_point is not None else None

    def element(*i: Expr) -> Operand:
        scaled = cast(wide, x[i]) / cast(wide, scale[where(i)])
        zero = cast(wide, zero_point[where(i)]) if zero_point is not None else None
        return saturated(apply(ScalarOp.RINT, scaled), zero, dtype)

    return compute(x.shape, element)


def saturated(value: Expr, zero: Expr | None, dtype: DType) -> Expr:
    """An integral float shifted by the zero point and held within the integer type."""
    limits = np.iinfo(dtype.numpy)
    shifted = value + zero if zero is not None else value
    held: Apply = minimum(maximum(shifted, float(limits.min)), float(limits.max))
    return cast(dtype, held)


@op("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    if not x.dtype.is_native or not x.dtype.is_integer:
        raise UnsupportedError(f"dequantisation of {x.dtype.name}")
    dtype = from_onnx(output_dtype) if output_dtype else scale.dtype
    where = _parameter_index(x, scale, axis, block_size)
    scale, zero_point = _vector(scale), _vector(zero_point) if zero_point is not None else None

    def element(*i: Expr) -> Operand:
        value = cast(DType.I32, x[i]) if x.dtype.bits < 32 else x[i]
        if zero_point is not None:
            value = value - cast(DType.I32 if x.dtype.bits < 32 else x.dtype, zero_point[where(i)])
        return cast(dtype, cast(DType.F32, value) * cast(DType.F32, scale[where(i)]))

    return compute(x.shape, element)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    axes = list(range(x.rank))
    low = elementwise(lambda v: minimum(v, 0.0), reduce(ScalarOp.MIN, x, axes, False))
    high = elementwise(lambda v: maximum(v, 0.0), reduce(ScalarOp.MAX, x, axes, False))
    scale = elementwise(lambda a, b: (b - a) / 255.0, low, high)

    def zero(a: Expr, s: Expr) -> Expr:
        held = minimum(maximum(apply(ScalarOp.RINT, (0.0 - a) / s), 0.0), 255.0)
        return cast(DType.U8, select(s.eq(0.0), 0.0, held))

    zero_point = elementwise(zero, low, scale)

    def element(*i: Expr) -> Operand:
        ratio = apply(ScalarOp.RINT, x[i] / scale[()])
        return saturated(ratio, cast(DType.F32, zero_point[()]), DType.U8)

    return compute(x.shape, element), scale, zero_point
