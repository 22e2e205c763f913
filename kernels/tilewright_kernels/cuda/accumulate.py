"""Steps of reductions: the only float arithmetic that is fused (`total + x * y`, rounded once).

Everywhere else a kernel rounds as its source reads, operation by operation.
"""

from __future__ import annotations

from typing import Any

from numba import types

from tilewright_kernels.cuda.intrinsics import intrinsic


def _step(name: str, dtype: Any) -> Any:
    """`total NAME value`."""

    @intrinsic
    def function(typing: Any, total: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return getattr(builder, name)(*values)

        return dtype(dtype, dtype), emit

    return function


def _product_step(dtype: Any) -> Any:
    """`total + x * y`."""

    @intrinsic
    def function(typing: Any, total: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.fma(values[1], values[2], values[0])

        return dtype(dtype, dtype, dtype), emit

    return function


add_f32, add_f64 = _step("fadd", types.float32), _step("fadd", types.float64)
multiply_f32, multiply_f64 = _step("fmul", types.float32), _step("fmul", types.float64)
add_product_f32, add_product_f64 = _product_step(types.float32), _product_step(types.float64)
