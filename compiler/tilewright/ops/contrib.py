"""Operators of com.microsoft that exporters and optimisers write into models.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.dtypes import DType
from tilewright.loops.ir import Cast, Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import (
    broadcast_index,
    cast,
    elementwise,
    fail,
    maximum,
    minimum,
    normalize_axis,
    select,
    view,
)
from tilewright.ops.contraction import gemm_product, matmul_product, scaled_sum
from tilewright.ops.convolution import add_bias, conv_windows, convolve
from tilewright.ops.gate_functions import gate_functions
from tilewright.ops.integer_contraction import (
    Quantised,
    check_parameter,
    exact_matmul,
    parameter,
    widened,
)
from tilewright.ops.quantization import saturated
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute
from tilewright.ops.windows import require_spatial

MS = "com.microsoft"


@op("Gelu", MS)
def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x."""
    return elementwise(_gelu, x)


@op("BiasGelu", MS)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Gelu of x + bias."""
    return elementwise(lambda e, b: _gelu(e + b), x, bias)


@op("FastGelu", MS)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu of x + bias by way of tanh."""
    if bias is None:
        return elementwise(_fast_gelu, x)
    return elementwise(lambda e, b: _fast_gelu(e + b), x, bias)


@op("QuickGelu", MS)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return elementwise(lambda e: e * apply(ScalarOp.SIGMOID, e * alpha), x)


def _gelu(e: Expr) -> Expr:
    return e * 0.5 * (apply(ScalarOp.ERF, e * math.sqrt(0.5)) + 1)


def _fast_gelu(e: Expr) -> Expr:
    inner = (e + e * e * e * 0.044715) * math.sqrt(2 / math.pi)
    return e * 0.5 * (apply(ScalarOp.TANH, inner) + 1)


@op("FusedMatMul", MS)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """alpha * a' @ b', with the last two dimensions of each transposed if asked for."""
    left = _transposed(a, bool(transA), bool(transBatchA))
    right = _transposed(b, bool(transB), bool(transBatchB))
    return scaled_sum(matmul_product(left, right), None, alpha, 0.0)


def _transposed(x: Tensor, matrix: bool, batch: bool) -> Tensor:
    """x with its first dimension moved behind the other batch dimensions, then its matrices
    transposed.
    """
    if x.rank < 2 or not (matrix or batch):
        return x
    source = list(range(x.rank))
    if batch:
        source.insert(x.rank - 2, source.pop(0))
    if matrix:
        source[-1], source[-2] = source[-2], source[-1]
    place = [source.index(d) for d in range(x.rank)]
    return view(x, [x.shape[d] for d in source], lambda *i: [i[p] for p in place])


@op("FusedGemm", MS)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm followed by an activation function."""
    y = scaled_sum(gemm_product(a, b, bool(transA), bool(transB)), c, alpha, beta)
    given = [v for v in (activation_alpha, activation_beta) if v is not None]
    return _activated(y, activation, given)


@op("FusedConv", MS)
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The activation of a convolution plus z."""
    require_spatial("FusedConv", x.shape)
    dims = conv_windows(x, w, kernel_shape, strides, dilations, pads, auto_pad)
    y = add_bias(convolve(x, w, dims, group), b)
    if z is not None:
        y = elementwise(lambda e, f: e + f, y, z)
    return _activated(y, activation, list(activation_params or ()))


def _activated(y: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    if not name:
        return y
    if name == "Clip":
        low, high = parameters
        return elementwise(lambda e: minimum(maximum(e, low), high), y)
    if name == "HardSwish":
        return elementwise(lambda e: e * minimum(maximum(e / 6 + 0.5, 0), 1), y)
    function = gate_functions([name], parameters[:1], parameters[1:2], None)[0]
    return elementwise(function, y)


@op("SkipLayerNormalization", MS)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> tuple[Tensor | None, ...]:
    """The layer normalisation of x + skip + bias; the fourth result is that sum."""
    total = _skip_sum(x, skip, bias)
    width, dtype = total.shape[-1], total.dtype.compute
    sums = compute(
        total.shape[:-1], lambda *i: cast(dtype, total[i]), reduce=ScalarOp.ADD, over=[width]
    )
    mean = elementwise(lambda e: e / width, sums)
    centred = compute(total.shape, lambda *i: cast(dtype, total[i]) - mean[i[:-1]])
    return (_scaled(centred, gamma, beta, epsilon, x.dtype), None, None, total)[:outputs]


@op("SkipSimplifiedLayerNormalization", MS)
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> tuple[Tensor | None, ...]:
    """x + skip + bias over its root mean square; the fourth result is that sum."""
    total = _skip_sum(x, skip, bias)
    return (_scaled(total, gamma, None, epsilon, x.dtype), None, None, total)[:outputs]


def _skip_sum(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    if x.rank == 0 or x.shape[-1] == 0:
        raise fail(f"an operand of shape {x.shape} cannot be normalised")
    total = elementwise(lambda e, f: e + f, x, skip)
    return total if bias is None else elementwise(lambda e, f: e + f, total, bias)


def _scaled(x: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float, dtype: DType) -> Tensor:
    """x over its root mean square in the last dimension, times gamma plus beta."""
    width, wide = x.shape[-1], x.dtype.compute

    def square(*i: Expr) -> Expr:
        value = cast(wide, x[i])
        return value * value

    squares = compute(x.shape[:-1], square, reduce=ScalarOp.ADD, over=[width])
    factor = elementwise(lambda e: 1 / apply(ScalarOp.SQRT, e / width + epsilon), squares)

    def element(*i: Expr) -> Expr:
        value: Expr = (
            cast(wide, x[i]) * factor[i[:-1]] * cast(wide, gamma[broadcast_index(i, gamma.shape)])
        )
        if beta is not None:
            value = value + cast(wide, beta[broadcast_index(i, beta.shape)])
        return cast(dtype, value)

    return compute(x.shape, element)


@op("DequantizeLinear", MS)
def dequantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """(x - zero_point) * scale, per tensor or along an axis."""
    along = _parameter_axis(x, scale, axis)
    wide = widened(x, zero_point, along)
    check_parameter(scale, x.shape, along)
    return compute(x.shape, lambda *i: Cast(scale.dtype, wide[i]) * parameter(scale, i, along))


@op("QuantizeLinear", MS)
def quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """round(x / scale) + zero_point, saturated, per tensor or along an axis."""
    along = _parameter_axis(x, scale, axis)
    check_parameter(scale, x.shape, along)
    if zero_point is not None:
        check_parameter(zero_point, x.shape, along)

    def element(*i: Expr) -> Expr:
        value: Expr = apply(ScalarOp.RINT, x[i] / parameter(scale, i, along))
        if zero_point is not None:
            value = value + Cast(x.dtype, parameter(zero_point, i, along))
        return saturated(value, None, zero_point.dtype if zero_point is not None else DType.U8)

    return compute(x.shape, element)


def _parameter_axis(x: Tensor, scale: Tensor, axis: int) -> int | None:
    return None if scale.size == 1 else normalize_axis(axis, x.rank)


@op("MatMulIntegerToFloat", MS)
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of quantised matrices as floats."""
    weights = Quantised(b, b_zero_point, b.rank - 1)
    product = exact_matmul(Quantised(a, a_zero_point, None), weights)
    return _rescaled(product, a_scale, b_scale, bias)


def _rescaled(product: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None) -> Tensor:
    """product * a_scale * b_scale + bias; b_scale is one value or one to a column."""
    column = product.rank - 1
    check_parameter(a_scale, product.shape, None)
    check_parameter(b_scale, product.shape, column)
    if bias is not None and bias.shape != product.shape[-1:]:
        raise fail(f"a bias of shape {bias.shape} does not fit a product of shape {product.shape}")

    def element(*i: Expr) -> Expr:
        scale = parameter(a_scale, i, None) * parameter(b_scale, i, column)
        value = Cast(a_scale.dtype, product[i]) * scale
        return value if bias is None else value + bias[i[-1]]

    return compute(product.shape, element)


@op("DynamicQuantizeMatMul", MS)
def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of a, quantised to its own range, with a quantised matrix, as floats."""
    scale, zero_point = own_range(a)
    quantised = compute(
        a.shape,
        lambda *i: saturated(apply(ScalarOp.RINT, a[i] / scale[()]), zero_point[()], DType.U8),
    )
    offset = compute((), lambda: Cast(DType.U8, zero_point[()]))
    weights = Quantised(b, b_zero_point, b.rank - 1)
    product = exact_matmul(Quantised(quantised, offset, None), weights)
    return _rescaled(product, scale, b_scale, bias)


def own_range(a: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (as a float) that map the range of a, widened to hold zero, to uint8."""
    low, high = (
        compute((), lambda *i: a[i], reduce=monoid, over=a.shape)
        for monoid in (ScalarOp.MIN, ScalarOp.MAX)
    )

    def scale() -> Expr:
        width = maximum(high[()], 0) - minimum(low[()], 0)
        return select(width.eq(0), 1.0, width / 255)

    scales = compute((), scale)
    zero = compute(
        (),
        lambda: apply(ScalarOp.RINT, minimum(maximum(-minimum(low[()], 0) / scales[()], 0), 255)),
    )
    return scales, zero
