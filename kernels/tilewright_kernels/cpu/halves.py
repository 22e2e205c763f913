"""float16 and bfloat16 as bit patterns of 16 bits, to and from float32."""

from __future__ import annotations

from typing import Any

from tilewright_kernels.cpu.machine import has_feature
from tilewright_kernels.cpu.values import F16, F32, I16, I32, Number, with_element


def decode_f16(builder: Any, bits: Any) -> Any:
    """float16 to float32: exact."""
    if has_feature("f16c") or has_feature("fullfp16"):
        half = builder.bitcast(bits, with_element(bits.type, F16))
        return builder.fpext(half, with_element(bits.type, F32))
    return _decode_f16_by_integers(Number(builder, bits)).value


def encode_f16(builder: Any, value: Any) -> Any:
    """float32 to float16, rounded to nearest even."""
    if has_feature("f16c") or has_feature("fullfp16"):
        half = builder.fptrunc(value, with_element(value.type, F16))
        return builder.bitcast(half, with_element(value.type, I16))
    return _encode_f16_by_integers(Number(builder, value)).value


def decode_bf16(builder: Any, bits: Any) -> Any:
    """bfloat16 to float32: exact, being its upper half."""
    wide = Number(builder, builder.zext(bits, with_element(bits.type, I32)))
    return (wide << 16).as_float().value


def encode_bf16(builder: Any, value: Any) -> Any:
    """float32 to bfloat16, rounded to nearest even; NaN stays NaN."""
    x = Number(builder, value)
    bits = x.bits()
    rounded = bits + 0x7FFF + (_logical_shift(bits, 16) & 1)
    quiet = bits | 0x00400000  # rounding could carry a NaN into infinity
    return _logical_shift(x.is_nan().choose(quiet, rounded), 16).low_bits(16).value


def narrow_to_odd(x: Number) -> Number:
    """float64 to float32, where what is not exact is cut off and its last bit set.

    A half then rounds it as it would the float64: the last bit, far below the half's own, tells
    what lies beside the middle of two halves from what lies on it. Boldo and Melquiond, "Emulation
    of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    nearest = x.narrow()
    back = nearest.widen()
    bits = nearest.bits()
    cut = (back.magnitude() > x.magnitude()).choose(bits - 1, bits)
    return ((back < x) | (back > x)).choose(cut | 1, bits).as_float()


def _logical_shift(x: Number, count: int) -> Number:
    return x.of(x.builder.lshr(x.value, x.like(count)))


def _decode_f16_by_integers(half: Number) -> Number:
    """Moves exponent and mantissa into place, then scales by 2^112 to correct the bias."""
    b = half.builder
    wide = half.of(b.zext(half.value, with_element(half.value.type, I32)))
    magnitude = (wide & 0x7FFF) << 13
    scaled = (magnitude.as_float() * 2.0**112).bits()  # also right for denormals
    special = magnitude | 0x7F800000
    result = (magnitude >= 0x0F800000).choose(special, scaled)
    return (result | ((wide & 0x8000) << 16)).as_float()


def _encode_f16_by_integers(x: Number) -> Number:
    """Normal results are rounded as integers, denormal ones by adding a power of two."""
    bits = x.bits()
    magnitude = bits & 0x7FFFFFFF
    a = magnitude.as_float()
    # Denormal results: an ulp of 0.5 is 2^-24, the ulp of a denormal float16.
    small = (a + 0.5).bits() - 0x3F000000
    normal = _logical_shift(
        magnitude - 0x38000000 + 0xFFF + (_logical_shift(magnitude, 13) & 1), 13
    )
    result = (a < 2.0**-14).choose(small, normal)
    result = (a >= 65520.0).choose(0x7C00, result)
    result = x.is_nan().choose(0x7E00, result)
    return (result | (_logical_shift(bits, 16) & 0x8000)).low_bits(16)
