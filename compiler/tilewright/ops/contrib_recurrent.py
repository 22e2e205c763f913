"""DynamicQuantizeLSTM of com.microsoft: an LSTM whose weights are stored as 8-bit integers.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import Unpack

from tilewright.loops.ir import Cast, Expr, apply, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import fail, maximum, minimum
from tilewright.ops.contrib import own_range
from tilewright.ops.recurrence import RecurrentAttributes
from tilewright.ops.recurrent import lstm
from tilewright.ops.registry import op
from tilewright.ops.tensor import Compute, Tensor, compute


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
    """LSTM on x rounded to 256 steps of its range. The hidden state is not rounded between steps,
    so results are closer to those of the float weights than a kernel of 8-bit products gives.
    """
    results = lstm(
        _rounded(x),
        _restored(w, w_scale, w_zero_point),
        _restored(r, r_scale, r_zero_point),
        *(b, sequence_lens, initial_h, initial_c, p),
        input_forget=input_forget,
        **attributes,
    )
    assert not isinstance(results, Tensor)
    return tuple(t for t in results if t is not None)


def _rounded(x: Tensor) -> Compute:
    """x as it is after quantisation to uint8 over its own range."""
    scale, zero = own_range(x)

    def element(*i: Expr) -> Expr:
        steps = apply(ScalarOp.RINT, x[i] / scale[()]) + zero[()]
        return (minimum(maximum(steps, 0), 255) - zero[()]) * scale[()]

    return compute(x.shape, element)


def _restored(w: Tensor, scale: Tensor, zero_point: Tensor) -> Compute:
    """Quantised weights [direction, depth, width] as floats [direction, width, depth]."""
    if w.rank != 3 or not w.dtype.is_integer or scale.shape != zero_point.shape:
        raise fail(f"quantised weights of shape {w.shape} with scales of shape {scale.shape}")
    if scale.shape not in ((w.shape[0],), (w.shape[0], 1), (w.shape[0], w.shape[2])):
        raise fail(f"scales of shape {scale.shape} do not fit weights of shape {w.shape}")

    def element(d: Expr, j: Expr, k: Expr) -> Expr:
        column = j if scale.shape[-1] == w.shape[2] else index_const(0)
        at = (d, column) if scale.rank == 2 else (d,)
        return (Cast(scale.dtype, w[d, k, j]) - Cast(scale.dtype, zero_point[at])) * scale[at]

    return compute((w.shape[0], w.shape[2], w.shape[1]), element)
