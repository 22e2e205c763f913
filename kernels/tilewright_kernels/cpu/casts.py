"""Conversions between element types, and a selection without a branch.

No conversion is undefined: integers wrap, floats out of an integer's range (and infinities) give
its nearest value, NaN gives 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cpu import halves
from tilewright_kernels.cpu.intrinsics import intrinsic
from tilewright_kernels.cpu.values import F32, F64, Number

FLOATS = {types.float32: F32, types.float64: F64}


def cast(builder: Any, value: Any, source: Any, target: Any) -> Any:
    """`value` of the Numba type `source` as one of the type `target`."""
    if source == target:
        return value
    if target == types.boolean:
        return _is_nonzero(builder, value, source)
    if source in FLOATS:
        if target in FLOATS:
            convert = builder.fpext if target == types.float64 else builder.fptrunc
            return convert(value, FLOATS[target])
        return _float_to_integer(builder, value, target)
    signed = source != types.boolean and source.signed
    if target in FLOATS:
        return (builder.sitofp if signed else builder.uitofp)(value, FLOATS[target])
    return _resize(builder, value, signed, ir.IntType(target.bitwidth))


def _is_nonzero(builder: Any, value: Any, source: Any) -> Any:
    zero = ir.Constant(value.type, 0)
    if source in FLOATS:  # unordered: NaN counts as true
        return builder.fcmp_unordered("!=", value, zero, flags=("contract",))
    return builder.icmp_unsigned("!=", value, zero)


def _float_to_integer(builder: Any, value: Any, target: Any) -> Any:
    """The value held in the range, then truncated. LLVM takes its own saturating conversions apart
    element by element, whereas these loops become vectors.
    """
    x = Number(builder, value)
    low, high, beyond = _range_in_floats(target, x)
    held = x.is_nan().choose(0.0, x).at_least(low).at_most(high).value
    # x86 has no conversions of vectors to less than 32 bits. In int32 lie all narrow integers.
    wide = ir.IntType(max(target.bitwidth, 32))
    signed = target.signed or target.bitwidth < 32
    whole = x.of((builder.fptosi if signed else builder.fptoui)(held, wide))
    if high != target.maxval:
        whole = (x >= beyond).choose(target.maxval, whole)
    return _resize(builder, whole.value, signed, ir.IntType(target.bitwidth))


def _range_in_floats(target: Any, x: Number) -> tuple[float, float, float]:
    """The least and the greatest float of x's type that an integer type holds, and the float
    nearest to its greatest integer.
    """
    kind = np.float32 if x.value.type == F32 else np.float64
    nearest = kind(target.maxval)
    high = nearest if int(nearest) == target.maxval else np.nextafter(nearest, kind(0))
    return float(target.minval), float(high), float(nearest)


def _resize(builder: Any, value: Any, signed: bool, result: Any) -> Any:
    if result.width == value.type.width:
        return value
    if result.width < value.type.width:
        return builder.trunc(value, result)
    return (builder.sext if signed else builder.zext)(value, result)


def _conversion(target: Any) -> Any:
    @intrinsic
    def convert(typing: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return cast(builder, values[0], x, target)

        return target(x), emit

    return convert


to_f32, to_f64 = _conversion(types.float32), _conversion(types.float64)
to_i8, to_i16 = _conversion(types.int8), _conversion(types.int16)
to_i32, to_i64 = _conversion(types.int32), _conversion(types.int64)
to_u8, to_u16 = _conversion(types.uint8), _conversion(types.uint16)
to_u32, to_u64 = _conversion(types.uint32), _conversion(types.uint64)
to_bool = _conversion(types.boolean)


def _to_be_halved(builder: Any, value: Any, source: Any) -> Any:
    """A float32 that rounds to the half that `value` rounds to."""
    if source == types.float64:
        return halves.narrow_to_odd(Number(builder, value)).value
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


@intrinsic
def select(typing: Any, condition: Any, then: Any, otherwise: Any) -> Any:
    """`then` if the condition holds, else `otherwise`; both are evaluated and of one type."""
    if then != otherwise:
        raise TypingError(f"select between {then} and {otherwise}: convert one of them")

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(*values)

    return then(types.boolean, then, otherwise), emit
