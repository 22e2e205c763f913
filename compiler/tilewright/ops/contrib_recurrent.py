"""DynamicQuantizeLSTM of com.microsoft: an LSTM whose weights are stored as 8-bit integers.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import Unpack

from tilewright.dtypes import DType
from tilewright.ops.byte_weights import ByteWeights
from tilewright.ops.common import fail, view
from tilewright.ops.quantized_state import QuantisedProduct, input_products
from tilewright.ops.recurrence import RecurrentAttributes, recurrence
from tilewright.ops.recurrent import run_lstm
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor


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

    Rounding magnifies the last bit of the gates, so their functions are those of ONNX Runtime.
    """
    inputs, recurrent = (
        _byte_weights(*given) for given in ((w, w_scale, w_zero_point), (r, r_scale, r_zero_point))
    )
    if x.rank != 3 or w.shape[1] != x.shape[2]:
        raise fail(f"an input of shape {x.shape} for weights of shape {w.shape}")
    rec = recurrence(
        *(x, inputs.values, recurrent.values, b, sequence_lens, initial_h),
        gates=4,
        defaults=["Sigmoid", "Tanh", "Tanh"],
        layout=0,
        products=input_products(x, inputs) if x.size else None,
        rational=True,
        **attributes,
    )
    product = QuantisedProduct(rec, recurrent, b)
    return run_lstm(rec, initial_h, initial_c, p, bool(input_forget), product)


def _byte_weights(w: Tensor, scale: Tensor, zero_point: Tensor) -> ByteWeights:
    """Weights that are stored as [direction, k, column]."""
    if w.rank != 3 or w.dtype not in (DType.I8, DType.U8) or scale.shape != zero_point.shape:
        raise fail(f"quantised weights of shape {w.shape} with scales of shape {scale.shape}")
    if scale.shape not in ((w.shape[0],), (w.shape[0], 1), (w.shape[0], w.shape[2])):
        raise fail(f"scales of shape {scale.shape} do not fit weights of shape {w.shape}")
    shape = (w.shape[0], w.shape[2], w.shape[1])
    return ByteWeights(view(w, shape, lambda d, j, k: (d, k, j)), scale, zero_point)
