"""Softmax of bytes: the exponentials of their differences are a table of 256 numbers.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Cast, Expr, Operand, apply, as_expr
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, elementwise, fail, maximum, minimum, normalize_axis, reduce
from tilewright.ops.integer_contraction import parameter
from tilewright.ops.quantization import saturated
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, constant, known

BYTES = (DType.U8, DType.I8)
FIRST_OPSET_OF_ONE_AXIS = 13


@op("QLinearSoftmax", "com.microsoft")
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> Tensor:
    """Softmax along an axis, before opset 13 over all axes from there on. As in ONNX Runtime the
    reciprocal of y_scale is cut to a whole number, which quantised models are tuned with."""
    if x.dtype not in BYTES or y_zero_point.dtype is not x.dtype:
        raise fail(f"bytes are expected, not {x.dtype.name} and {y_zero_point.dtype.name}")
    if x_scale.size != 1 or y_scale.size != 1:
        raise fail(f"one scale is expected, not {x_scale.shape} and {y_scale.shape}")
    at = normalize_axis(axis, x.rank)
    axes = [at] if opset >= FIRST_OPSET_OF_ONE_AXIS else list(range(at, x.rank))
    table = constant(_powers(float(known(x_scale).ravel()[0])), DType.F32)
    top = reduce(ScalarOp.MAX, x, axes, True)

    def entry(v: Expr, m: Expr) -> Expr:
        difference = cast(DType.I64, v) - cast(DType.I64, m)
        return table[minimum(maximum(difference, -255), 0) + 255]

    power = elementwise(entry, x, top)
    total = reduce(ScalarOp.ADD, power, axes, True)

    def element(*i: Expr) -> Operand:
        steps = apply(ScalarOp.FLOOR, as_expr(1.0, DType.F32) / parameter(y_scale, i, None))
        here = [0 if k in axes else v for k, v in enumerate(i)]
        share = apply(ScalarOp.RINT, power[i] * steps / total[here])
        zero = Cast(DType.F32, parameter(y_zero_point, i, None))
        return saturated(share, zero, x.dtype)

    return compute(x.shape, element)


def _powers(scale: float) -> np.ndarray:
    """e^(scale * d) for d from -255 to 0, in units that keep small ones from vanishing."""
    headroom = 64.0 * math.log(2)
    powers: np.ndarray = np.exp(scale * np.arange(-255, 1) + headroom)
    return powers.astype(np.float32)
