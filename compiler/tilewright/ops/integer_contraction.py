"""Quantised contractions: operands less their zero points, products summed, and the sums scaled
back. Scales and zero points are read at run time.

Sums of products of bytes are far below 2^53, so float64 holds them exactly; and it has register
tiles. The results are the int32 numbers that ONNX asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Cast, Expr, apply, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import broadcast_index, broadcast_shape, cast, fail, maximum, minimum
from tilewright.ops.contraction import matmul_product
from tilewright.ops.convolution import conv_windows, convolve
from tilewright.ops.registry import op
from tilewright.ops.tensor import Compute, Tensor, compute
from tilewright.ops.windows import require_spatial

WIDE = DType.F64


@op("MatMulInteger")
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """(a - a_zero_point) @ (b - b_zero_point) in int32, zero points per tensor, per row of a or
    column of b.

    https://onnx.ai/onnx/operators/onnx__MatMulInteger.html
    """
    product = matmul_product(
        widened(a, a_zero_point, _per_row(a)), widened(b, b_zero_point, _per_column(b))
    )
    return _integral(product)


@op("ConvInteger")
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution of (x - x_zero_point) with (w - w_zero_point) in int32.

    https://onnx.ai/onnx/operators/onnx__ConvInteger.html
    """
    require_spatial("ConvInteger", x.shape)
    dims = conv_windows(x, w, kernel_shape, strides, dilations, pads, auto_pad)
    product = convolve(widened(x, x_zero_point, None), widened(w, w_zero_point, 0), dims, group)
    return _integral(product)


@op("QLinearMatMul")
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """A matrix product of quantised operands, quantised again.

    https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html
    """
    rows, columns = _per_row(a), _per_column(b)
    product = matmul_product(widened(a, a_zero_point, rows), widened(b, b_zero_point, columns))
    if product.rank < 2 and max(a_scale.size, b_scale.size) > 1:
        raise UnsupportedError("QLinearMatMul of vectors with a scale for each row or column")
    last = product.rank - 1
    scales = [(a_scale, last - 1), (b_scale, last), (y_scale, last - 1)]
    return _requantised(product, scales, (y_zero_point, last - 1))


@op("QLinearConv")
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution of quantised operands, quantised again; the bias is an int32 with the scale of
    the products.

    https://onnx.ai/onnx/operators/onnx__QLinearConv.html
    """
    require_spatial("QLinearConv", x.shape)
    dims = conv_windows(x, w, kernel_shape, strides, dilations, pads, auto_pad)
    product = convolve(widened(x, x_zero_point, None), widened(w, w_zero_point, 0), dims, group)
    if b is not None and b.shape != (w.shape[0],):
        raise fail(f"a bias of shape {b.shape} does not fit {w.shape[0]} channels")
    return _requantised(
        product, [(x_scale, None), (w_scale, 1), (y_scale, None)], (y_zero_point, None), b
    )


def _per_row(a: Tensor) -> int | None:
    return a.rank - 2 if a.rank > 1 else None


def _per_column(b: Tensor) -> int | None:
    return b.rank - 1 if b.rank > 1 else None


def widened(x: Tensor, zero_point: Tensor | None, axis: int | None) -> Compute:
    """x - zero_point, exactly, in float64."""
    if not x.dtype.is_integer:
        raise UnsupportedError(f"a quantised contraction of {x.dtype.name}")
    if zero_point is None:
        return compute(x.shape, lambda *i: Cast(WIDE, x[i]))
    check_parameter(zero_point, x.shape, axis)
    return compute(
        x.shape, lambda *i: Cast(WIDE, x[i]) - Cast(WIDE, parameter(zero_point, i, axis))
    )


def _integral(product: Tensor) -> Tensor:
    """Exact sums as the int32 numbers that they are."""
    return compute(product.shape, lambda *i: Cast(DType.I32, product[i]))


def check_parameter(p: Tensor, shape: Sequence[int], axis: int | None) -> None:
    """An error unless p is one value, one for each position along `axis`, or broadcasts to the
    shape.
    """
    along = axis is not None and p.rank == 1 and p.shape[0] == shape[axis]
    if (
        p.size != 1
        and not along
        and (p.rank < 2 or broadcast_shape(p.shape, shape) != tuple(shape))
    ):
        raise fail(f"a scale or zero point of shape {p.shape} does not fit a shape {tuple(shape)}")


def parameter(p: Tensor, index: Sequence[Expr], axis: int | None) -> Expr:
    """A scale or zero point for the element at `index`: one for all, along `axis`, or broadcast."""
    if p.size == 1:
        return p[[index_const(0)] * p.rank]
    if p.rank == 1 and axis is not None:
        return p[index[axis]]
    return p[broadcast_index(index, p.shape)]


def _requantised(
    product: Compute,
    scales: Sequence[tuple[Tensor, int | None]],
    zero_point: tuple[Tensor, int | None],
    bias: Tensor | None = None,
) -> Tensor:
    """round(product * scale of a * scale of b / scale of y) + zero point, saturated to the zero
    point's type.
    """
    for p, axis in (*scales, zero_point):
        check_parameter(p, product.shape, axis)
    target = zero_point[0].dtype
    if not target.is_integer:
        raise UnsupportedError(f"quantisation to {target.name}")
    limits = np.iinfo(target.numpy)

    def element(*i: Expr) -> Expr:
        total: Expr = product[i] if bias is None else product[i] + Cast(WIDE, bias[i[1]])
        left, right, result = (cast(DType.F32, parameter(p, i, axis)) for p, axis in scales)
        scaled = cast(DType.F32, total) * (left * right / result)
        shifted = apply(ScalarOp.RINT, scaled) + cast(
            DType.F32, parameter(zero_point[0], i, zero_point[1])
        )
        return cast(target, minimum(maximum(shifted, float(limits.min)), float(limits.max)))

    return compute(product.shape, element)
