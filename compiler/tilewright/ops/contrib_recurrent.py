"""DynamicQuantizeLSTM of com.microsoft: an LSTM whose weights are stored as 8-bit integers.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import Unpack

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Cast, Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, fail, maximum, minimum, view
from tilewright.ops.contrib import own_range
from tilewright.ops.quantized_state import STEPS, QuantisedProduct, parameter
from tilewright.ops.recurrence import RecurrentAttributes, recurrence
from tilewright.ops.recurrent import run_lstm
from tilewright.ops.registry import op
from tilewright.ops.tensor import Compute, Constant, Tensor, compute


@op("DynamicQuantizeLSTM", "com.microsoft")
def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero_point: Tensor,
    r_scale: Tensor,
    r_zero_point: Tensor,
    *,
    input_forget: int = 0,
    **attributes: Unpack[RecurrentAttributes],
) -> tuple[Tensor, ...]:
    """LSTM on bytes: x is rounded to 256 steps of its range, the hidden state at every step to
    those of its own. Batch rows that are computed together share the range of the state.
    """
    for weights, scale, zero_point in ((w, w_scale, w_zero_point), (r, r_scale, r_zero_point)):
        _require_bytes(weights, scale, zero_point)
    rec = recurrence(
        *(x, _transposed(w), _transposed(r), b, sequence_lens, initial_h),
        gates=4,
        defaults=["Sigmoid", "Tanh", "Tanh"],
        layout=0,
        products=_products(x, w, w_scale, w_zero_point),
        **attributes,
    )
    product = QuantisedProduct(rec, r_scale, r_zero_point, b)
    return run_lstm(rec, initial_h, initial_c, p, bool(input_forget), product)


def _require_bytes(w: Tensor, scale: Tensor, zero_point: Tensor) -> None:
    if w.rank != 3 or w.dtype not in (DType.I8, DType.U8) or scale.shape != zero_point.shape:
        raise fail(f"quantised weights of shape {w.shape} with scales of shape {scale.shape}")
    if scale.shape not in ((w.shape[0],), (w.shape[0], 1), (w.shape[0], w.shape[2])):
        raise fail(f"scales of shape {scale.shape} do not fit weights of shape {w.shape}")


def _transposed(w: Tensor) -> Tensor:
    return view(w, (w.shape[0], w.shape[2], w.shape[1]), lambda d, j, k: (d, k, j))


def _products(x: Tensor, w: Tensor, scale: Tensor, zero_point: Tensor) -> Compute:
    """The input's part of each gate: [time, batch, direction * width]."""
    (directions, depth, width), (x_scale, x_zero) = w.shape, own_range(x)
    dtype = DType.F32 if _largest_sum(w, zero_point) <= 2**24 else DType.F64  # these are exact

    def rounded(*i: Expr) -> Expr:
        steps = apply(ScalarOp.RINT, x[i] / x_scale[()]) + x_zero[()]
        return cast(dtype, minimum(maximum(steps, 0), STEPS) - x_zero[()])

    def widened(k: Expr, j: Expr) -> Expr:
        d, column = j // width, j % width
        return Cast(dtype, w[d, k, column]) - Cast(dtype, parameter(zero_point, d, column))

    left, right = compute(x.shape, rounded), compute((depth, directions * width), widened)
    shape = (x.shape[0], x.shape[1], directions * width)
    sums = compute(
        shape, lambda t, n, j, k: left[t, n, k] * right[k, j], reduce=ScalarOp.ADD, over=[depth]
    )

    def scaled(t: Expr, n: Expr, j: Expr) -> Expr:
        factor = x_scale[()] * parameter(scale, j // width, j % width)
        return cast(DType.F32, sums[t, n, j]) * factor

    return compute(shape, scaled)


def _largest_sum(w: Tensor, zero_point: Tensor) -> int:
    """No sum of products of bytes with a column of the weights is larger."""
    if not isinstance(w, Constant) or not isinstance(zero_point, Constant):
        return STEPS * STEPS * w.shape[1]
    zero = zero_point.value.astype(np.int64).reshape(w.shape[0], 1, -1)
    sums = np.abs(w.value.astype(np.int64) - zero).sum(axis=1)
    return STEPS * int(sums.max(initial=0))
