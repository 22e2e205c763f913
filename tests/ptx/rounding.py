"""Sums and products of floats rounded once, in every direction."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from ptx.memory import Array

SPLIT = 134217729.0  # 2**27 + 1, to halve a double
LOW_BITS, HALF = np.uint64((1 << 29) - 1), np.uint64(1 << 28)  # what a float32 lacks of a double
LEAST_NORMAL = 2.0**-126
MODES = ("rn", "rz", "rm", "rp", "rna")


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product and its error, where neither overflows nor underflows."""
    product = a * b
    a1 = a * SPLIT - (a * SPLIT - a)
    b1 = b * SPLIT - (b * SPLIT - b)
    a0, b0 = a - a1, b - b1
    return product, a0 * b0 - (((product - a1 * b1) - a0 * b1) - a1 * b0)


def to_odd(total: Array, error: Array) -> Array:
    """Of an inexact sum, the neighbour whose last bit is set; another rounding is then right."""
    bits = np.atleast_1d(total).view(np.int64).copy()
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & ((bits & 1) == 0)
    outwards = (error > 0) == (total > 0)
    bits += np.where(inexact, np.where(outwards, 1, -1), 0)
    return bits.view(np.float64).reshape(np.shape(total))


def to_single(value: Array, mode: str) -> Array:
    """A double that is exact, or odd where it is not, as a float32."""
    single: Array = np.asarray(value, np.float64).astype(np.float32)
    if mode == "rn":
        return single
    back = single.astype(np.float64)
    away = {
        "rz": np.abs(back) > np.abs(value),
        "rm": back > value,
        "rp": back < value,
    }[mode]
    goal = {"rz": np.float32(0), "rm": np.float32(-np.inf), "rp": np.float32(np.inf)}[mode]
    return np.where(away, np.nextafter(single, goal), single)


def fused_single(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """a * b + c of float32, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    if mode != "rn":
        return to_single(to_odd(*two_sum(product, c.astype(np.float64))), mode)
    result: Array = total.astype(np.float32)
    bits = total.view(np.uint64)
    doubtful = (bits & LOW_BITS) == HALF
    doubtful |= (np.abs(total) < LEAST_NORMAL) & (total != 0)
    if doubtful.any():
        sure = to_odd(*two_sum(product, c.astype(np.float64)))
        result = np.where(doubtful, sure.astype(np.float32), result)
    return result


def fused_double(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float64, rounded once to nearest."""
    a, b, c = np.broadcast_arrays(a, b, c)
    high, low = two_product(a, b)
    middle, lowest = two_sum(c, low)
    top, rest = two_sum(high, middle)
    result = top + to_odd(*two_sum(rest, lowest))
    result = np.where(result == 0, a * b + c, result)  # for the sign of an exact zero
    tame = _is_tame(a, 450) & _is_tame(b, 450) & _is_tame(c, 900)
    if tame.all():
        return result
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    result = np.where(finite, result, a * b + c)
    for k in np.flatnonzero(finite & ~tame):
        result.flat[k] = _exactly(a.flat[k], b.flat[k], c.flat[k])
    return result


def _is_tame(x: Array, exponent: int) -> Array:
    size = np.abs(x)
    tame: Array = ((size > 2.0**-exponent) & (size < 2.0**exponent)) | (x == 0)
    return tame


def _exactly(a: Any, b: Any, c: Any) -> float:
    """By fractions, for numbers near the ends of the range."""
    total = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if total == 0:
        return float(a * b + c)
    try:
        found = float(total)
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")
    return found if found or total > 0 else -0.0


def flushed(x: Array) -> Array:
    """Subnormal numbers as zeros of their sign."""
    least = np.finfo(x.dtype).tiny
    return np.where(np.abs(x) < least, np.copysign(np.zeros_like(x), x), x)
