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
    select,
)
from tilewright.ops.operands import NUMBERS, require
from tilewright.ops.reductions import combine
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute

Index = Callable[[Sequence[Expr]], list[Operand]]


def _parameter_index(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block: int
) -> Index:
    """Where the scale and the zero point of the element at an index are."""
    if zero_point is not None and (zero_point.shape or (1,)) != (scale.shape or (1,)):
        raise fail(f"zero points of shape {zero_point.shape} for scales of shape {scale.shape}")
    if scale.size == 1 and scale.rank <= 1:
        return lambda i: [0]
    at = normalize_axis(axis, x.rank)
    if block > 0 and scale.rank == x.rank:
        blocks = [-(-n // block) if k == at else n for k, n in enumerate(x.shape)]
        if scale.shape == tuple(blocks):
            return lambda i: [v // block if k == at else v for k, v in enumerate(i)]
    if block or scale.shape != x.shape[at : at + 1]:
        raise fail(f"scales of shape {scale.shape} do not fit {x.shape} in blocks of {block}")
    return lambda i: [i[at]]


def _read(parameters: Tensor, at: list[Operand]) -> Expr:
    """A parameter; a single one may be a scalar or a vector."""
    return parameters[at[: parameters.rank]]


def _quantized_type(zero_point: Tensor | None, output_dtype: int) -> DType:
    given = from_onnx(output_dtype) if output_dtype else DType.U8
    dtype = zero_point.dtype if zero_point is not None else given
    if output_dtype and dtype is not given:
        raise fail(f"zero points of type {dtype.name} for results of type {given.name}")
    if not dtype.is_integer or not dtype.is_native:
        raise UnsupportedError(f"quantisation to {dtype.name}")
    if dtype.bits > 16:
        raise fail(f"quantisation to {dtype.name}: 8 or 16 bits are expected")
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
    """Operands are rounded to the type of the division, and divided in one of 32 bits or more."""
    require(NUMBERS, x, scale)
    dtype = _quantized_type(zero_point, output_dtype)
    where = _parameter_index(x, scale, zero_point, axis, block_size)
    given = from_onnx(precision) if precision else scale.dtype
    division = given if given.is_float and given.is_native else DType.F32

    def operand(v: Expr) -> Expr:
        return cast(division.compute, cast(division, v))

    def element(*i: Expr) -> Operand:
        at = where(i)
        scaled = operand(x[i]) / operand(_read(scale, at))
        zero = cast(division.compute, _read(zero_point, at)) if zero_point is not None else None
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
    if not all(t.is_native and t.is_float for t in (dtype, scale.dtype)):
        raise UnsupportedError(f"dequantisation by {scale.dtype.name} to {dtype.name}")
    if zero_point is not None and zero_point.dtype is not x.dtype:
        raise fail(f"zero points of type {zero_point.dtype.name} for {x.dtype.name}")
    where = _parameter_index(x, scale, zero_point, axis, block_size)
    wide = DType.I32 if x.dtype.bits < 32 else x.dtype

    def element(*i: Expr) -> Operand:
        at = where(i)
        value = cast(wide, x[i])
        if zero_point is not None:
            value = value - cast(wide, _read(zero_point, at))
        return cast(dtype, cast(dtype.compute, value) * cast(dtype.compute, _read(scale, at)))

    return compute(x.shape, element)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scale of operands that are all 0 is 1, as in ONNX Runtime."""
    if x.dtype is not DType.F32:
        raise fail(f"float32 is expected, not {x.dtype.name}")
    axes = list(range(x.rank))
    low = elementwise(lambda v: minimum(v, 0.0), combine(ScalarOp.MIN, x, axes, False))
    high = elementwise(lambda v: maximum(v, 0.0), combine(ScalarOp.MAX, x, axes, False))
    scale = elementwise(lambda a, b: select(a.eq(b), 1.0, (b - a) / 255.0), low, high)

    def zero(a: Expr, s: Expr) -> Expr:
        held = minimum(maximum(apply(ScalarOp.RINT, (0.0 - a) / s), 0.0), 255.0)
        return cast(DType.U8, held)

    zero_point = elementwise(zero, low, scale)

    def element(*i: Expr) -> Operand:
        ratio = apply(ScalarOp.RINT, x[i] / scale[()])
        return saturated(ratio, cast(DType.F32, zero_point[()]), DType.U8)

    return compute(x.shape, element), scale, zero_point
