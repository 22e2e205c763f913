"""float16 and bfloat16 as bit patterns of 16 bits, to and from float32, one at a time or in pairs.

Each conversion to a half rounds to nearest even, whatever NaN it is stays NaN.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import types

from tilewright_kernels.cpu.halves import decode_bf16, narrow_to_odd
from tilewright_kernels.cuda.intrinsics import F32, I16, I32, intrinsic, meaning, ptx

__all__ = ["decode_bf16", "narrow_to_odd"]


def from_f16(bits: Any) -> Any:
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float32)


def from_bf16(bits: Any) -> Any:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def as_f16(value: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32).astype(np.float16).view(np.uint16)


def as_bf16(value: Any) -> Any:
    return np.asarray(value, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def decode_f16(builder: Any, bits: Any) -> Any:
    """float16 to float32: exact."""
    return ptx(builder, "cvt.f32.f16 $0, $1;", [F32], [bits])[0]


def encode_f16(builder: Any, value: Any) -> Any:
    return ptx(builder, "cvt.rn.f16.f32 $0, $1;", [I16], [value])[0]


def encode_bf16(builder: Any, value: Any) -> Any:
    return ptx(builder, "cvt.rn.bf16.f32 $0, $1;", [I16], [value])[0]


def encode_pair(builder: Any, kind: str, low: Any, high: Any) -> Any:
    """Two float32 as two halves (`f16` or `bf16`) in 32 bits, `low` in the lower ones."""
    return ptx(builder, f"cvt.rn.{kind}x2.f32 $0, $2, $1;", [I32], [low, high])[0]


def decode_pair(builder: Any, kind: str, bits: Any) -> tuple[Any, Any]:
    """The opposite of `encode_pair`."""
    if kind == "bf16":
        low = builder.shl(bits, ir.Constant(I32, 16))
        high = builder.and_(bits, ir.Constant(I32, 0xFFFF0000))
        return builder.bitcast(low, F32), builder.bitcast(high, F32)
    parts = builder.trunc(bits, I16), builder.trunc(builder.lshr(bits, ir.Constant(I32, 16)), I16)
    return decode_f16(builder, parts[0]), decode_f16(builder, parts[1])


def _pack(kind: str, python: Any) -> Any:
    @intrinsic
    def pack(typing: Any, low: Any, high: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return encode_pair(builder, kind, *values)

        return types.uint32(types.float32, types.float32), emit

    def mean(low: Any, high: Any) -> Any:
        return python(low).astype(np.uint32) | (python(high).astype(np.uint32) << 16)

    return meaning(mean)(pack)


def _unpack(kind: str, python: Any) -> Any:
    @intrinsic
    def unpack(typing: Any, bits: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pair = decode_pair(builder, kind, values[0])
            return context.make_tuple(builder, signature.return_type, pair)

        pair = types.UniTuple(types.float32, 2)
        return pair(types.uint32), emit

    def mean(bits: Any) -> Any:
        words = np.asarray(bits, np.uint32)
        return python(words & 0xFFFF), python(words >> 16)

    return meaning(mean)(unpack)


# Two float32 as halves in one uint32, as `mma` takes them, and back.
pack_f16, pack_bf16 = _pack("f16", as_f16), _pack("bf16", as_bf16)
unpack_f16, unpack_bf16 = _unpack("f16", from_f16), _unpack("bf16", from_bf16)


def _tf32_meaning(value: Any) -> Any:
    """The 13 lowest bits go; halfway cases away from zero."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    special = (bits & 0x7F800000) == 0x7F800000
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    quiet = np.where(np.isnan(value), np.uint32(0x7FFFFFFF), bits)
    return np.where(special, quiet, rounded).astype(np.uint32)


@meaning(_tf32_meaning)
@intrinsic
def to_tf32(typing: Any, x: Any) -> Any:
    """A float32 with its mantissa rounded to 10 bits, as `mma_tf32` takes it."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ptx(builder, "cvt.rna.tf32.f32 $0, $1;", [I32], values)[0]

    return types.uint32(types.float32), emit


@meaning(lambda word: _tf32_meaning(np.asarray(word, np.uint32).view(np.float32)))
@intrinsic
def word_to_tf32(typing: Any, word: Any) -> Any:
    """The same of a float32 in a word, as fragments are loaded."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        single = builder.bitcast(values[0], F32)
        return ptx(builder, "cvt.rna.tf32.f32 $0, $1;", [I32], [single])[0]

    return types.uint32(types.uint32), emit
