"""Bits: logic, shifts, fields, counts and permutations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.errors import Unsupported
from ptx.frame import TYPES, Frame, Mask, Step, builds
from ptx.integers import elementwise
from ptx.memory import WORDS, Array
from ptx.syntax import Instruction, Integer

LOGIC: dict[str, Any] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}


@builds("and", "or", "xor", "not")
def logic(frame: Frame, i: Instruction) -> Step:
    return elementwise(frame, i, LOGIC[i.name], [i.type] * (len(i.operands) - 1), i.type)


@builds("cnot")
def logical_not(frame: Frame, i: Instruction) -> Step:
    return elementwise(frame, i, lambda a: (a == 0).astype(a.dtype), [i.type], i.type)


@builds("shl", "shr")
def shift(frame: Frame, i: Instruction) -> Step:
    """By any number: beyond the width all bits are shifted out."""
    kind = i.type if i.type[0] == "s" and i.name == "shr" else f"u{i.type[1:]}"
    width = np.dtype(TYPES[kind]).itemsize * 8
    function = left_shift if i.name == "shl" else right_shift
    if isinstance(i.operands[2], Integer) and 0 <= i.operands[2].value < width:
        value, target = frame.source(i.operands[1], kind), frame.target(i.operands[0], kind)
        amount = np.dtype(TYPES[kind]).type(i.operands[2].value)
        shifted = np.left_shift if i.name == "shl" else np.right_shift
        return lambda mask: shifted(value, amount, out=target, where=mask)
    return elementwise(frame, i, function, [kind, "u32"], kind)


def left_shift(a: Array, amount: Array) -> Array:
    width = a.dtype.itemsize * 8
    inside = np.minimum(amount, width - 1).astype(a.dtype)
    shifted: Array = np.where(amount < width, a << inside, a.dtype.type(0))
    return shifted


def right_shift(a: Array, amount: Array) -> Array:
    width = a.dtype.itemsize * 8
    inside = np.minimum(amount, width - 1).astype(a.dtype)
    beyond = a >> a.dtype.type(width - 1) if a.dtype.kind == "i" else np.zeros_like(a)
    return np.where(amount < width, a >> inside, beyond)


@builds("shf")
def funnel_shift(frame: Frame, i: Instruction) -> Step:
    """32 bits of two words shifted together."""

    def function(low: Array, high: Array, amount: Array) -> Array:
        most = np.uint32(32)
        by = np.minimum(amount, most) if i.has("clamp") else amount & np.uint32(31)
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        if i.has("r"):
            return (both >> by.astype(np.uint64)).astype(np.uint32)
        return ((both << by.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)

    return elementwise(frame, i, function, ["u32"] * 3, "u32")


@builds("bfe")
def extract(frame: Frame, i: Instruction) -> Step:
    """A field of bits, extended by its sign for signed types."""
    kind = i.type

    def function(a: Array, start: Array, length: Array) -> Array:
        width = a.dtype.itemsize * 8
        start, length = start & 255, np.minimum(length & 255, width)
        bits = a.view(WORDS[a.dtype.itemsize])
        field = right_shift(bits, start) & field_mask(length, bits.dtype)
        if a.dtype.kind == "u":
            return field
        last = np.minimum(start + np.maximum(length, 1) - 1, width - 1)
        negative = ((right_shift(bits, last) & bits.dtype.type(1)) == 1) & (length > 0)
        there = np.minimum(length, np.maximum(width, start) - start)
        return np.where(negative, field | ~field_mask(there, bits.dtype), field).view(a.dtype)

    return elementwise(frame, i, function, [kind, "u32", "u32"], kind)


def field_mask(length: Array, dtype: Any) -> Array:
    """The lowest `length` bits."""
    ones = np.full(np.shape(length), ~dtype.type(0), dtype)
    return ~left_shift(ones, length)


@builds("bfi")
def insert(frame: Frame, i: Instruction) -> Step:
    kind = f"u{i.type[1:]}"

    def function(a: Array, b: Array, start: Array, length: Array) -> Array:
        start, length = start & 255, length & 255
        mask = left_shift(field_mask(length, b.dtype), start)
        return (b & ~mask) | (left_shift(a, start) & mask)

    return elementwise(frame, i, function, [kind, kind, "u32", "u32"], kind)


@builds("popc", "clz", "brev", "bfind")
def counts(frame: Frame, i: Instruction) -> Step:
    kind = i.type if i.name == "bfind" else f"u{i.type[1:]}"
    to = kind if i.name == "brev" else "u32"

    def highest(a: Array) -> Array:
        """The place of the highest bit unlike the sign, all bits set for none."""
        bits = np.where(a < 0, ~a, a).view(WORDS[a.dtype.itemsize])
        width = a.dtype.itemsize * 8
        place = np.uint32(width - 1) - leading_zeros(bits)
        if i.has("shiftamt"):
            place = np.where(bits == 0, place, np.uint32(width - 1) - place)
        return np.where(bits == 0, np.uint32(0xFFFFFFFF), place)

    function = {"popc": ones, "clz": leading_zeros, "brev": reversed_bits, "bfind": highest}
    return elementwise(frame, i, function[i.name], [kind], to)


def ones(a: Array) -> Array:
    return np.bitwise_count(a).astype(np.uint32)


def leading_zeros(a: Array) -> Array:
    """As many as the width for 0."""
    width, bits = a.dtype.itemsize * 8, a
    for step in (1, 2, 4, 8, 16, 32):
        if step < width:
            bits = bits | (bits >> a.dtype.type(step))
    return np.uint32(width) - ones(bits)


def reversed_bits(a: Array) -> Array:
    size = a.dtype.itemsize
    rows = np.ascontiguousarray(a).view(np.uint8).reshape(-1, size)
    turned = np.packbits(np.unpackbits(rows, axis=1)[:, ::-1], axis=1)
    return np.ascontiguousarray(turned).view(a.dtype).reshape(a.shape)


@builds("prmt")
def permute(frame: Frame, i: Instruction) -> Step:
    """Four bytes chosen out of eight; bit 3 of a selector repeats the byte's sign."""
    if i.type != "b32" or i.modifiers != ("b32",):
        raise Unsupported(f"{i}")

    def function(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros(np.shape(both), np.uint32)
        for k in range(4):
            choice = (selector >> np.uint32(4 * k)) & np.uint32(15)
            byte = (both >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(
                255
            )
            sign = np.where(byte > 127, np.uint64(255), np.uint64(0))
            byte = np.where(choice > 7, sign, byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * k)
        return result

    return elementwise(frame, i, function, ["u32"] * 3, "u32")


@builds("lop3")
def logic_of_three(frame: Frame, i: Instruction) -> Step:
    """Any function of three bits, by its table."""
    a, b, c = (frame.source(o, "u32") for o in i.operands[1:4])
    table, target = int(frame.source(i.operands[4], "u32")), frame.target(i.operands[0], "u32")

    def step(mask: Mask) -> None:
        result = np.zeros(frame.shape.total, np.uint32)
        for k in range(8):
            if table >> k & 1:
                x, y, z = (v if k >> s & 1 else ~v for v, s in ((a, 2), (b, 1), (c, 0)))
                result |= x & y & z
        np.copyto(target, result, where=mask)

    return step
