"""Conversions between types, in every rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.errors import Unsupported
from ptx.floats import saturated
from ptx.frame import TYPES, Frame, Mask, Step, builds
from ptx.memory import Array
from ptx.rounding import flushed, to_single
from ptx.syntax import Instruction

Function = Callable[[Array], Array]
TO_WHOLE: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
MODES = ("rn", "rz", "rm", "rp", "rna")
FLOATS = ("f16", "bf16", "f32", "f64")
NAN_HALF, NAN_SINGLE = np.uint16(0x7FFF), np.uint32(0x7FFFFFFF)


@builds("cvt")
def convert(frame: Frame, i: Instruction) -> Step:
    to, source = i.modifiers[-2], i.type
    if to in ("f16x2", "bf16x2"):
        return pack(frame, i, to)
    value = frame.source(i.operands[1], source)
    target = frame.extended_target(i.operands[0], to)
    function = conversion(i, source, to)

    def step(mask: Mask) -> None:
        result = np.asarray(function(value))
        if result.dtype != target.dtype and result.dtype.itemsize == target.dtype.itemsize:
            result = result.view(target.dtype)
        np.copyto(target, result, where=mask, casting="unsafe")

    return step


def conversion(i: Instruction, source: str, to: str) -> Function:
    mode = next((m for m in MODES if i.has(m)), "rn")
    if to == "tf32":
        return lambda x: as_tf32(x, mode)
    if source not in FLOATS:
        return from_integer(i, source, to, mode)
    widened = from_brain if source == "bf16" else lambda x: x
    flush = i.has("ftz")
    inner = from_float(i, source, to, mode)
    return lambda x: inner(flushed(widened(x)) if flush else widened(x))


def from_integer(i: Instruction, source: str, to: str, mode: str) -> Function:
    dtype = TYPES[to]
    if to in FLOATS:
        return lambda x: rounded(x, to, mode, np.dtype(TYPES[source]).itemsize)
    if i.has("sat"):
        info = np.iinfo(dtype)
        return lambda x: clipped(x, info).astype(dtype)
    return lambda x: x.astype(dtype)


def clipped(x: Array, info: Any) -> Array:
    own = np.iinfo(x.dtype)
    return np.clip(x, max(own.min, info.min), min(own.max, info.max))


def rounded(x: Array, to: str, mode: str, size: int) -> Array:
    """An integer as a float."""
    if mode == "rn" and to in ("f32", "f64"):
        return x.astype(TYPES[to])
    if size == 8 or to == "bf16":
        raise Unsupported(f"{to} by {mode} of an integer")
    return as_float(x.astype(np.float64), to, mode)


def from_float(i: Instruction, source: str, to: str, mode: str) -> Function:
    whole = next((TO_WHOLE[m] for m in i.modifiers if m in TO_WHOLE), None)
    if to not in FLOATS:
        info, nan = np.iinfo(TYPES[to]), of_nan(source, to)
        rounding = whole or np.trunc
        return lambda x: as_integer(rounding(x.astype(np.float64)), info, nan)

    def function(x: Array) -> Array:
        value = whole(x) if whole else x
        if i.has("sat"):
            value = saturated(value)
        if i.has("relu"):
            value = np.where(np.isnan(value), value, np.maximum(value, 0))
        if i.has("ftz") and to == "f32":
            return flushed(as_float(value, to, mode))
        return as_float(value, to, mode)

    return function


def of_nan(source: str, to: str) -> int:
    """Zero, but of doubles or as an integer of 64 bits the number with only the top bit set."""
    bits = int(np.dtype(TYPES[to]).itemsize) * 8
    if source != "f64" and bits < 64:
        return 0
    return -(1 << bits - 1) if to[0] == "s" else 1 << bits - 1


def as_integer(x: Array, info: Any, nan: int) -> Array:
    """The nearest number that the type has."""
    dtype = info.dtype
    above, below = x >= float(info.max), x <= float(info.min)
    inside = np.where(above | below | np.isnan(x), 0.0, x).astype(dtype)
    result = np.where(above, dtype.type(info.max), inside)
    result = np.where(below, dtype.type(info.min), result)
    return np.where(np.isnan(x), dtype.type(nan), result)


def as_float(x: Array, to: str, mode: str) -> Array:
    """A float in another type; bfloat16 as its bits."""
    if to == "bf16":
        return as_brain(x, mode)
    if to == "f16":
        return as_half(x, mode)
    if to == "f32" and x.dtype == np.float64 and mode in ("rz", "rm", "rp"):
        return to_single(x, mode)
    return x.astype(TYPES[to])


def as_half(x: Array, mode: str) -> Array:
    half: Array = np.asarray(x).astype(np.float16)
    if mode in ("rz", "rm", "rp"):
        back = half.astype(np.float64)
        away = {"rz": np.abs(back) > np.abs(x), "rm": back > x, "rp": back < x}[mode]
        goal = np.float16({"rz": 0, "rm": -np.inf, "rp": np.inf}[mode])
        half = np.where(away, np.nextafter(half, goal), half)
    return np.where(np.isnan(x), NAN_HALF, half.view(np.uint16)).view(np.float16)


def as_brain(x: Array, mode: str) -> Array:
    """The upper half of a float32, rounded to nearest or towards zero."""
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    if x.dtype != np.float32 or mode not in ("rn", "rz", "rna"):
        raise Unsupported(f"{x.dtype} as bf16 by {mode}")
    bits = np.asarray(x).view(np.uint32)
    step: dict[str, Any] = {"rn": np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))}
    step |= {"rz": np.uint32(0), "rna": np.uint32(0x8000)}
    upper = ((bits + step[mode]) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), NAN_HALF, upper)


def from_brain(bits: Array) -> Array:
    wide = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def as_tf32(bits: Array, mode: str) -> Array:
    """A mantissa of 10 bits: halfway cases away from zero, or to even."""
    words = bits.view(np.uint32)
    steps: dict[str, Any] = {"rna": np.uint32(0x1000), "rz": np.uint32(0)}
    steps["rn"] = np.uint32(0xFFF) + ((words >> np.uint32(13)) & np.uint32(1))
    cut = (words + steps[mode]) & np.uint32(0xFFFFE000)
    value = words.view(np.float32)
    return np.where(np.isnan(value), NAN_SINGLE, np.where(np.isinf(value), words, cut))


def pack(frame: Frame, i: Instruction, to: str) -> Step:
    """Two float32 in a word, the first operand in its upper half."""
    single = "f16" if to == "f16x2" else "bf16"
    high, low = (frame.source(o, i.type) for o in i.operands[1:3])
    target, function = frame.target(i.operands[0], to), conversion(i, i.type, single)

    def step(mask: Mask) -> None:
        upper = np.asarray(function(high)).view(np.uint16).astype(np.uint32)
        lower = np.asarray(function(low)).view(np.uint16).astype(np.uint32)
        np.copyto(target, lower | (upper << np.uint32(16)), where=mask)

    return step
