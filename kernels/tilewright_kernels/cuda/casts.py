"""Conversions between element types, and a selection without a branch.

No conversion is undefined: integers wrap, floats out of an integer's range (and infinities) give
its nearest value, NaN gives 0.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cpu import casts as cpu
from tilewright_kernels.cpu.casts import FLOATS, cast
from tilewright_kernels.cuda import halves
from tilewright_kernels.cuda.intrinsics import I32, I64, intrinsic, ptx, shared
from tilewright_kernels.cuda.math import DeviceNumber


def _to_nearest_integer(builder: Any, value: Any, source: Any, target: Any) -> Any:
    """The hardware's conversion holds the value in the range of 32 or 64 bits."""
    wide = I32 if target.bitwidth <= 32 else I64
    sign = "s" if target.signed or target.bitwidth < 32 else "u"
    text = f"cvt.rzi.{sign}{wide.width}.f{source.bitwidth} $0, $1;"
    whole = ptx(builder, text, [wide], [value])[0]
    if source == types.float64 or wide is I64:  # PTX ISA: here NaN does not give 0
        ordered = builder.fcmp_ordered("ord", value, value)
        whole = builder.select(ordered, whole, ir.Constant(wide, 0))
    if target.bitwidth == wide.width:
        return whole
    for relation, bound in (("<", target.minval), (">", target.maxval)):
        limit = ir.Constant(wide, bound)
        whole = builder.select(builder.icmp_signed(relation, whole, limit), limit, whole)
    return builder.trunc(whole, ir.IntType(target.bitwidth))


def _conversion(target: Any) -> Any:
    @intrinsic
    def convert(typing: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            if x in FLOATS and isinstance(target, types.Integer):
                return _to_nearest_integer(builder, values[0], x, target)
            return cast(builder, values[0], x, target)

        return target(types.unliteral(x)), emit

    return convert


to_f32, to_f64 = _conversion(types.float32), _conversion(types.float64)
to_i8, to_i16 = _conversion(types.int8), _conversion(types.int16)
to_i32, to_i64 = _conversion(types.int32), _conversion(types.int64)
to_u8, to_u16 = _conversion(types.uint8), _conversion(types.uint16)
to_u32, to_u64 = _conversion(types.uint32), _conversion(types.uint64)
to_bool, select = shared(cpu.to_bool), shared(cpu.select)


def _to_be_halved(builder: Any, value: Any, source: Any) -> Any:
    """A float32 that rounds to the half that `value` rounds to."""
    if source == types.float64:
        return halves.narrow_to_odd(DeviceNumber(builder, value)).value
    return cast(builder, value, source, types.float32)


@intrinsic
def to_f16(typing: Any, x: Any) -> Any:
    """The float32 nearest to x that float16 can hold; a float64 is rounded once."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        single = _to_be_halved(builder, values[0], x)
        return halves.decode_f16(builder, halves.encode_f16(builder, single))

    return types.float32(x), emit


@intrinsic
def to_bf16(typing: Any, x: Any) -> Any:
    """The float32 nearest to x that bfloat16 can hold; a float64 is rounded once."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        single = _to_be_halved(builder, values[0], x)
        return halves.decode_bf16(builder, halves.encode_bf16(builder, single))

    return types.float32(x), emit
