"""Arithmetic on floats. What the ISA calls approximate is as exact here as the type allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.errors import Unsupported
from ptx.frame import TYPES, Frame, Mask, Step, builds
from ptx.memory import WORDS, Array
from ptx.rounding import flushed, fused_double, fused_single, to_odd, to_single, two_sum
from ptx.syntax import Instruction

Function = Callable[..., Array]
DIRECTED = ("rz", "rm", "rp")
UPPER_WORD = np.uint64(0xFFFFFFFF00000000)
FAST_LIMIT = np.float32(2.0**126)


def mode_of(i: Instruction) -> str:
    return next((m for m in DIRECTED if i.has(m)), "rn")


def elementwise(frame: Frame, i: Instruction, function: Any) -> Step:
    """The function of the operands, all of the instruction's type, with .ftz and .sat."""
    kind = i.type
    if kind not in ("f16", "f32", "f64"):
        raise Unsupported(f"arithmetic on {kind}")
    values = [frame.source(o, kind) for o in i.operands[1:]]
    target = frame.target(i.operands[0], kind)
    flush, saturate = i.has("ftz") and kind == "f32", i.has("sat")
    is_plain = isinstance(function, np.ufunc) and not flush and not saturate
    if is_plain and target.flags.c_contiguous:
        return lambda mask: function(*values, out=target, where=mask)

    def step(mask: Mask) -> None:
        operands = [flushed(v) for v in values] if flush else values
        result = function(*operands)
        if flush:
            result = flushed(result)
        if saturate:
            result = saturated(result)
        np.copyto(target, result, where=mask)

    return step


def saturated(x: Array) -> Array:
    """Into [0, 1]; NaN becomes +0."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    result: Array = np.where(x > zero, np.minimum(x, one), zero)
    return result


def arithmetic(frame: Frame, i: Instruction) -> Step:
    """add, sub, mul, div, min, max, abs, neg."""
    plain = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    if i.name in plain and mode_of(i) != "rn":
        return elementwise(frame, i, directed(i))
    functions: dict[str, Any] = {
        **plain,
        "div": approximate_quotient if i.has("approx") else np.divide,
        "min": least if not i.has("NaN") else least_or_nan,
        "max": greatest if not i.has("NaN") else greatest_or_nan,
        "abs": np.abs,
        "neg": np.negative,
    }
    return elementwise(frame, i, functions[i.name])


def directed(i: Instruction) -> Function:
    """Sums and products of float32 that are not rounded to nearest."""
    mode = mode_of(i)
    if i.type != "f32":
        raise Unsupported(f"{i.type} rounded by {mode}")

    def function(a: Array, b: Array) -> Array:
        x, y = a.astype(np.float64), b.astype(np.float64)
        if i.name == "mul":
            return to_single(x * y, mode)
        return to_single(to_odd(*two_sum(x, y if i.name == "add" else -y)), mode)

    return function


def approximate_quotient(a: Array, b: Array) -> Array:
    """a * (1 / b), which is 0, or NaN of an infinite `a`, for a divisor beyond 2**126."""
    large = (np.abs(b) > FAST_LIMIT) & np.isfinite(b)
    zero = np.copysign(np.float32(0), a) * np.sign(b)
    return np.where(large, np.where(np.isinf(a), np.float32(np.nan), zero), a / b)


def _extreme(relation: Any, join: Any) -> Function:
    """Of two zeros the one that the bits' `join` gives: -0 is less than +0."""

    def function(a: Array, b: Array) -> Array:
        word = WORDS[a.dtype.itemsize]
        equal = join(a.view(word), b.view(word)).view(a.dtype)
        result: Array = np.where(a == b, equal, relation(a, b))
        return result

    return function


least, greatest = _extreme(np.fmin, np.bitwise_or), _extreme(np.fmax, np.bitwise_and)
least_or_nan = _extreme(np.minimum, np.bitwise_or)
greatest_or_nan = _extreme(np.maximum, np.bitwise_and)


@builds("fma")
def fused(frame: Frame, i: Instruction) -> Step:
    mode = mode_of(i)
    if i.type == "f32":
        return elementwise(frame, i, lambda a, b, c: fused_single(a, b, c, mode))
    if mode != "rn":
        raise Unsupported(f"{i.type} rounded by {mode}")
    if i.type == "f64":
        return elementwise(frame, i, fused_double)
    return elementwise(frame, i, fused_half)


def fused_half(a: Array, b: Array, c: Array) -> Array:
    product = np.multiply(a, b, dtype=np.float64)
    return to_odd(*two_sum(product, c.astype(np.float64))).astype(np.float16)


WIDE: dict[str, Function] = {
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@builds("sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def transcendental(frame: Frame, i: Instruction) -> Step:
    """By way of doubles; `sqrt` and `rcp` so too are rounded right."""
    function = WIDE[i.name]
    mode = mode_of(i)
    if i.type == "f64":
        if mode != "rn":
            raise Unsupported(f"{i.type} rounded by {mode}")
        return elementwise(frame, i, gross(function) if i.has("approx") else function)
    if mode != "rn":
        raise Unsupported(f"{i.name} rounded by {mode}")
    dtype = TYPES[i.type] if i.type in ("f16", "f32") else np.float32
    return elementwise(frame, i, lambda x: function(x.astype(np.float64)).astype(dtype))


def gross(function: Function) -> Function:
    """The approximations of doubles: subnormal numbers are zeros, the lower word is zero."""

    def approximate(x: Array) -> Array:
        bits = flushed(function(flushed(x))).view(np.uint64) & UPPER_WORD
        return bits.view(np.float64)

    return approximate


@builds("copysign")
def copy_sign(frame: Frame, i: Instruction) -> Step:
    """The second operand with the first one's sign."""
    return elementwise(frame, i, lambda sign, size: np.copysign(size, sign))


@builds("testp")
def test_property(frame: Frame, i: Instruction) -> Step:
    value, target = frame.source(i.operands[1], i.type), frame.target(i.operands[0], "pred")
    least_normal = np.finfo(TYPES[i.type]).tiny
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= least_normal),
        "subnormal": lambda x: (x != 0) & (np.abs(x) < least_normal),
    }
    test = tests[i.modifiers[0]]
    return lambda mask: np.copyto(target, test(value), where=mask)
