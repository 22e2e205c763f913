"""Quotients of indices by numbers that are known when a kernel is launched: a product and a shift.

Both functions are for 0 <= x < 2**31 and a divisor d, of which the host made a factor of 32 bits
and a shift above them: `tilewright.codegen.quotients`.
Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, figure 4.1.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cuda.intrinsics import I32, I64, intrinsic, meaning


def _quotient(builder: Any, x: Any, magic: Any) -> Any:
    """x // d, as 32 bits: (high half of x * factor, plus x) >> shift."""
    factor = builder.zext(builder.trunc(magic, I32), I64)
    wide = builder.mul(builder.zext(x, I64), factor)
    high = builder.trunc(builder.lshr(wide, ir.Constant(I64, 32)), I32)
    shift = builder.trunc(builder.lshr(magic, ir.Constant(I64, 32)), I32)
    return builder.lshr(builder.add(high, x), shift)


def _divided(x: int, magic: int) -> int:
    return ((x * (magic & 0xFFFFFFFF) >> 32) + x) >> (magic >> 32)


@meaning(_divided)
@intrinsic
def quotient(typing: Any, x: Any, magic: Any) -> Any:
    """x // d"""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.zext(_quotient(builder, builder.trunc(values[0], I32), values[1]), I64)

    return types.int64(types.int64, types.int64), emit


@meaning(lambda x, divisor, magic: x - _divided(x, magic) * divisor)
@intrinsic
def remainder(typing: Any, x: Any, divisor: Any, magic: Any) -> Any:
    """x % d"""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        narrow, d = (builder.trunc(v, I32) for v in values[:2])
        whole = builder.mul(_quotient(builder, narrow, values[2]), d)
        return builder.zext(builder.sub(narrow, whole), I64)

    return types.int64(types.int64, types.int64, types.int64), emit
