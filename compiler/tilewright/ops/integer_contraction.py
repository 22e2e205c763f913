"""Quantised contractions: operands less their zero points, products summed, and the sums scaled
back. Scales and zero points are read at run time.

Sums of products of bytes are far below 2^53, and with most weights below 2^24: a float type holds
them exactly, in any order, and floats have register tiles. The results are the int32 numbers that
ONNX asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Unpack

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Cast, Expr, apply, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import broadcast_index, broadcast_shape, cast, fail
from tilewright.ops.contraction import matmul_product
from tilewright.ops.convolution import WindowAttributes, conv_windows, convolve
from tilewright.ops.quantization import saturated
from tilewright.ops.registry import op
from tilewright.ops.tensor import Compute, Constant, Tensor, compute, constant
from tilewright.ops.windows import Window, require_spatial

WIDE = DType.F64

Parameter = tuple[Tensor, int | None]
"""A scale or zero point, and the axis along which it lies."""


@op("MatMulInteger")
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """(a - a_zero_point) @ (b - b_zero_point) in int32, zero points per tensor, per row of a or
    column of b.

    https://onnx.ai/onnx/operators/onnx__MatMulInteger.html
    """
    left = Quantised(a, a_zero_point, _per_row(a))
    return _integral(exact_matmul(left, Quantised(b, b_zero_point, _per_column(b))))


@op("ConvInteger")
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> Tensor:
    """A convolution of (x - x_zero_point) with (w - w_zero_point) in int32.

    https://onnx.ai/onnx/operators/onnx__ConvInteger.html
    """
    require_spatial("ConvInteger", x.shape)
    dims = conv_windows(x, w, **attributes)
    image, weights = Quantised(x, x_zero_point, None), Quantised(w, w_zero_point, 0)
    return _integral(_exact_conv(image, weights, dims, group))


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
    left = Quantised(a, a_zero_point, _per_row(a))
    product = exact_matmul(left, Quantised(b, b_zero_point, _per_column(b)))
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
    group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> Tensor:
    """A convolution of quantised operands, quantised again; the bias is an int32 with the scale of
    the products.

    https://onnx.ai/onnx/operators/onnx__QLinearConv.html
    """
    require_spatial("QLinearConv", x.shape)
    dims = conv_windows(x, w, **attributes)
    image, weights = Quantised(x, x_zero_point, None), Quantised(w, w_zero_point, 0)
    product = _exact_conv(image, weights, dims, group, b)
    if b is not None and b.shape != (w.shape[0],):
        raise fail(f"a bias of shape {b.shape} does not fit {w.shape[0]} channels")
    total = product if b is None else _plus(product, b, 1)
    return _requantised(
        total, [(x_scale, None), (w_scale, 1), (y_scale, None)], (y_zero_point, None)
    )


@op("QGemm", "com.microsoft")
def qgemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha * a @ b + c of quantised matrices, quantised again if y_scale is given; c is an int32
    with the scale of the products.

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    if a.rank != 2 or b.rank != 2:
        raise fail(f"QGemm takes matrices, not shapes {a.shape} and {b.shape}")
    a, b = (_transposed(t) if flag else t for t, flag in ((a, transA), (b, transB)))
    left, right = Quantised(a, a_zero_point, None), Quantised(b, b_zero_point, 1)
    total = exact_matmul(left, right, c)
    if c is not None:
        if broadcast_shape(c.shape, total.shape) != total.shape:
            raise fail(f"a bias of shape {c.shape} does not fit a product of shape {total.shape}")
        total = _plus(total, c, None)
    scales: list[Parameter] = [(a_scale, None), (b_scale, 1)]
    if y_scale is None or y_zero_point is None:
        return _rescaled(total, scales, alpha)
    return _requantised(total, [*scales, (y_scale, None)], (y_zero_point, None), alpha)


def _transposed(x: Tensor) -> Tensor:
    """A matrix's transpose; that of a constant is a constant."""
    if isinstance(x, Constant):
        return constant(x.value.T, x.dtype)
    return compute(x.shape[::-1], lambda i, j: x[j, i])


def _per_row(a: Tensor) -> int | None:
    return a.rank - 2 if a.rank > 1 else None


def _per_column(b: Tensor) -> int | None:
    return b.rank - 1 if b.rank > 1 else None


@dataclass(frozen=True)
class Quantised:
    """Integers less a zero point, which is one for all, or one for each position along `axis`."""

    x: Tensor
    zero_point: Tensor | None
    axis: int | None

    def shifted(self) -> np.ndarray | None:
        """The differences, as far as they are constants."""
        if not isinstance(self.x, Constant):
            return None
        if self.zero_point is None:
            return self.x.value.astype(np.int64)
        if not isinstance(self.zero_point, Constant):
            return None
        zero = self.zero_point.value.astype(np.int64)
        if zero.ndim == 1 and zero.size > 1 and self.axis is not None:
            zero = zero.reshape([-1 if k == self.axis else 1 for k in range(self.x.rank)])
        return self.x.value.astype(np.int64) - zero

    def reach(self) -> int:
        """No difference is larger."""
        known = self.shifted()
        if known is not None:
            return int(np.abs(known).max(initial=0))
        limits = np.iinfo(self.x.dtype.numpy)
        if self.zero_point is None:
            return max(int(limits.max), -int(limits.min))
        return int(limits.max) - int(limits.min)

    def largest_sum(self, axes: tuple[int, ...]) -> int:
        """No sum of magnitudes over the axes is larger."""
        known = self.shifted()
        if known is not None:
            return int(np.abs(known).sum(axis=axes).max(initial=0))
        return self.reach() * prod(self.x.shape[a] for a in axes)


def exact_matmul(a: Quantised, b: Quantised, bias: Tensor | None = None) -> Compute:
    """The product in a float type that holds it, and the product plus the bias, exactly."""
    dtype = _exact_type(a, b, (max(b.x.rank - 2, 0),), bias)
    product = matmul_product(*(widened(q.x, q.zero_point, q.axis, dtype) for q in (a, b)))
    return replace(product, exact=True)


def _exact_conv(
    x: Quantised, w: Quantised, dims: Sequence[Window], group: int, bias: Tensor | None = None
) -> Compute:
    dtype = _exact_type(x, w, tuple(range(1, w.x.rank)), bias)
    image, weights = (widened(q.x, q.zero_point, q.axis, dtype) for q in (x, w))
    return replace(convolve(image, weights, dims, group), exact=True)


def _exact_type(a: Quantised, b: Quantised, axes: tuple[int, ...], bias: Tensor | None) -> DType:
    """The narrower float type in which sums over b's `axes` are exact in any order."""
    if not (a.x.dtype.is_integer and b.x.dtype.is_integer and b.x.rank):
        return WIDE
    largest = a.reach() * b.largest_sum(axes)
    if bias is not None:
        if not isinstance(bias, Constant):
            return WIDE
        largest += int(np.abs(bias.value.astype(np.int64)).max(initial=0))
    return DType.F32 if largest <= 2**24 else WIDE


def widened(x: Tensor, zero_point: Tensor | None, axis: int | None, dtype: DType = WIDE) -> Compute:
    """x - zero_point, exactly, in a float type."""
    if not x.dtype.is_integer:
        raise UnsupportedError(f"a quantised contraction of {x.dtype.name}")
    if zero_point is None:
        return compute(x.shape, lambda *i: Cast(dtype, x[i]))
    check_parameter(zero_point, x.shape, axis)
    return compute(
        x.shape, lambda *i: Cast(dtype, x[i]) - Cast(dtype, parameter(zero_point, i, axis))
    )


def _plus(product: Compute, bias: Tensor, axis: int | None) -> Compute:
    """product + bias, still exact; the bias lies along `axis`, or broadcasts."""
    kind = product.dtype

    def element(*i: Expr) -> Expr:
        at = broadcast_index(i, bias.shape) if axis is None else [i[axis]]
        return product[i] + Cast(kind, bias[at])

    return compute(product.shape, element)


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


def _rescaled(product: Compute, scales: Sequence[Parameter], alpha: float) -> Tensor:
    """product * alpha * scale of a * scale of b, in float32."""
    for p, axis in scales:
        check_parameter(p, product.shape, axis)

    def element(*i: Expr) -> Expr:
        left, right = (cast(DType.F32, parameter(p, i, axis)) for p, axis in scales)
        return cast(DType.F32, product[i]) * _scaled(left * right, alpha)

    return compute(product.shape, element)


def _requantised(
    product: Compute, scales: Sequence[Parameter], zero_point: Parameter, alpha: float = 1.0
) -> Tensor:
    """round(product * alpha * scale of a * scale of b / scale of y) + zero point, saturated to the
    zero point's type.
    """
    for p, axis in (*scales, zero_point):
        check_parameter(p, product.shape, axis)
    target = zero_point[0].dtype
    if not target.is_integer:
        raise UnsupportedError(f"quantisation to {target.name}")

    def element(*i: Expr) -> Expr:
        left, right, result = (cast(DType.F32, parameter(p, i, axis)) for p, axis in scales)
        scaled = cast(DType.F32, product[i]) * (_scaled(left * right, alpha) / result)
        zero = cast(DType.F32, parameter(zero_point[0], i, zero_point[1]))
        return saturated(apply(ScalarOp.RINT, scaled), zero, target)

    return compute(product.shape, element)


def _scaled(value: Expr, alpha: float) -> Expr:
    return value if alpha == 1.0 else value * alpha
