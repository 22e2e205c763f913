"""Arithmetic on integers; overflow wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx import floats
from ptx.errors import Unsupported
from ptx.frame import Frame, Mask, Step, builds
from ptx.memory import WORDS, Array
from ptx.syntax import Instruction

WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
PLAIN: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "neg": np.negative,
}
Function = Callable[..., Array]


def is_float(instruction: Instruction) -> bool:
    return instruction.type in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")


def elementwise(frame: Frame, i: Instruction, function: Any, kinds: list[str], to: str) -> Step:
    """The function of operands of these types; a ufunc writes its result where it belongs."""
    values = [frame.source(o, kind) for o, kind in zip(i.operands[1:], kinds, strict=True)]
    target = frame.target(i.operands[0], to)
    if isinstance(function, np.ufunc) and target.flags.c_contiguous:
        return lambda mask: function(*values, out=target, where=mask)

    def step(mask: Mask) -> None:
        np.copyto(target, function(*values), where=mask)

    return step


@builds("add", "sub", "mul", "min", "max", "abs", "neg", "div", "rem")
def arithmetic(frame: Frame, i: Instruction) -> Step:
    if is_float(i):
        return floats.arithmetic(frame, i)
    kind, count = i.type, len(i.operands) - 1
    if i.has("cc"):
        return with_carry(frame, i)
    if i.has("sat"):
        raise Unsupported("saturation")
    if i.has("wide"):
        return elementwise(frame, i, product_of(kind), [kind] * 2, WIDER[kind])
    if i.has("hi"):
        return elementwise(frame, i, lambda a, b: high_product(a, b), [kind] * 2, kind)
    function = {"div": quotient, "rem": remainder}.get(i.name) or PLAIN[i.name]
    return elementwise(frame, i, function, [kind] * count, kind)


def product_of(kind: str) -> Function:
    wide = {"u16": np.uint32, "s16": np.int32, "u32": np.uint64, "s32": np.int64}[kind]
    return lambda a, b: np.multiply(a, b, dtype=wide)


def unsigned(a: Array) -> Array:
    return a.view(WORDS[a.dtype.itemsize])


def magnitude(a: Array) -> Array:
    """The absolute value as an unsigned number, right for the least number too."""
    if a.dtype.kind == "u":
        return a
    bits = unsigned(a)
    return np.where(a < 0, np.negative(bits), bits)


def quotient(a: Array, b: Array) -> Array:
    """Rounded towards zero; of a division by 0 all bits are set."""
    whole = magnitude(a) // np.maximum(magnitude(b), 1)
    signed = (
        whole if a.dtype.kind == "u" else np.where((a < 0) ^ (b < 0), np.negative(whole), whole)
    )
    return np.where(b == 0, ~np.zeros_like(signed), signed).view(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    """With the sign of `a`; of a division by 0, `a`."""
    divisor = magnitude(b)
    rest = magnitude(a) % np.maximum(divisor, 1)
    signed = rest if a.dtype.kind == "u" else np.where(a < 0, np.negative(rest), rest)
    return np.where(b == 0, unsigned(a), signed).view(a.dtype)


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    size = a.dtype.itemsize
    if size < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * size}").type
        upper: Array = (np.multiply(a, b, dtype=wide) >> wide(8 * size)).astype(a.dtype)
        return upper
    x, y = unsigned(a), unsigned(b)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    lower = x0 * y1 + (middle & low)
    high: Array = x1 * y1 + (middle >> half) + (lower >> half)
    if a.dtype.kind == "u":
        return high
    zero = np.uint64(0)
    fixed: Array = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return fixed.view(np.int64)


@builds("mad")
def multiply_add(frame: Frame, i: Instruction) -> Step:
    if is_float(i):
        return floats.fused(frame, i)
    kind = i.type
    if i.has("cc"):
        return with_carry(frame, i)
    if i.has("wide"):
        product = product_of(kind)
        kinds = [kind, kind, WIDER[kind]]
        return elementwise(frame, i, lambda a, b, c: product(a, b) + c, kinds, WIDER[kind])
    if i.has("hi"):
        return elementwise(frame, i, lambda a, b, c: high_product(a, b) + c, [kind] * 3, kind)
    return elementwise(frame, i, lambda a, b, c: a * b + c, [kind] * 3, kind)


@builds("addc", "subc", "madc")
def with_carry(frame: Frame, i: Instruction) -> Step:
    """Sums that read the carry (addc, subc, madc) and write it (.cc), of 32 and 64 bits."""
    kind = f"u{i.type[1:]}"
    values = [frame.source(o, kind) for o in i.operands[1:]]
    target, carry = frame.target(i.operands[0], kind), frame.carry
    one = WORDS[int(kind[1:]) // 8]
    reads, is_difference = i.name.endswith("c"), i.name.startswith("sub")
    product = None
    if i.name.startswith("mad"):
        product = high_product if i.has("hi") else np.multiply

    def step(mask: Mask) -> None:
        a, b = (product(values[0], values[1]), values[2]) if product else values
        extra = carry.astype(one) if reads else one(0)
        if is_difference:
            first = a - b
            result = first - extra
            out = (a < b) | (first < extra)
        else:
            first = a + b
            result = first + extra
            out = (first < a) | (result < first)
        np.copyto(target, result, where=mask)
        if i.has("cc"):
            np.copyto(carry, out, where=mask)

    return step


@builds("sad")
def absolute_difference(frame: Frame, i: Instruction) -> Step:
    kind = i.type
    function = lambda a, b, c: c + np.where(a < b, b - a, a - b)  # noqa: E731
    return elementwise(frame, i, function, [kind] * 3, kind)


@builds("mul24", "mad24")
def of_24_bits(frame: Frame, i: Instruction) -> Step:
    raise Unsupported(f"{i}")


@builds("dp4a")
def dot_of_bytes(frame: Frame, i: Instruction) -> Step:
    """c + the products of four bytes; the first type is of `a`, the second of `b`."""
    left, right = i.modifiers[0], i.modifiers[1]
    sums = "u32" if (left, right) == ("u32", "u32") else "s32"
    decoders = {"u32": np.uint8, "s32": np.int8}

    def bytes_of(words: Array, kind: str) -> Array:
        flat = np.ascontiguousarray(np.broadcast_to(words, frame.shape.total))
        return flat.view(decoders[kind]).reshape(-1, 4).astype(np.int64)

    def function(a: Array, b: Array, c: Array) -> Array:
        total = (bytes_of(a, left) * bytes_of(b, right)).sum(1) + c
        low: Array = (total & 0xFFFFFFFF).astype(np.uint32).view(c.dtype)
        return low

    return elementwise(frame, i, function, ["u32", "u32", sums], sums)


@builds("dp2a")
def dot_of_words(frame: Frame, i: Instruction) -> Step:
    """c + the products of the two halves of `a` with two bytes of `b`: its lower or its upper
    ones."""
    left, right = i.modifiers[1], i.modifiers[2]
    sums = "u32" if (left, right) == ("u32", "u32") else "s32"
    first = 2 if i.has("hi") else 0
    words: dict[str, Any] = {"u32": np.uint16, "s32": np.int16}
    octets: dict[str, Any] = {"u32": np.uint8, "s32": np.int8}

    def parts(x: Array, dtype: Any, count: int) -> Array:
        flat = np.ascontiguousarray(np.broadcast_to(x, frame.shape.total))
        found: Array = flat.view(dtype).reshape(-1, count).astype(np.int64)
        return found

    def function(a: Array, b: Array, c: Array) -> Array:
        chosen = parts(b, octets[right], 4)[:, first : first + 2]
        total = (parts(a, words[left], 2) * chosen).sum(1) + c
        low: Array = (total & 0xFFFFFFFF).astype(np.uint32).view(c.dtype)
        return low

    return elementwise(frame, i, function, ["u32", "u32", sums], sums)
