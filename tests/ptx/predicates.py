"""Comparisons and choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.errors import Unsupported
from ptx.frame import Frame, Mask, Step, builds, parts
from ptx.memory import Array
from ptx.rounding import flushed
from ptx.syntax import Instruction, Operand

Compare = Callable[[Array, Array], Array]
ORDERED: dict[str, Any] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
JOINS: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def either_nan(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def comparison(name: str, kind: str) -> Compare:
    """A comparison; of floats `ne` is false and the unordered ones are true where one is NaN."""
    if name == "nan":
        return either_nan
    if name == "num":
        return lambda a, b: ~either_nan(a, b)
    if name in UNORDERED:
        inner = ORDERED[UNORDERED[name]]
        return lambda a, b: inner(a, b) | either_nan(a, b)
    if name == "ne" and kind[0] == "f":
        return lambda a, b: np.not_equal(a, b) & ~either_nan(a, b)
    compare: Compare = ORDERED[name]
    return compare


def compared(frame: Frame, i: Instruction, operands: tuple[Operand, ...]) -> Callable[[], Array]:
    """What `setp` and `set` compute: a comparison, joined with a further predicate."""
    name, join = i.modifiers[0], next((m for m in i.modifiers[1:] if m in JOINS), None)
    kind = i.type
    if kind not in ("f16", "f32", "f64") and kind[0] not in "usb":
        raise Unsupported(f"comparison of {kind}")
    a, b = (frame.source(o, kind) for o in operands[:2])
    compare, flush = comparison(name, kind), i.has("ftz") and kind == "f32"

    def value() -> Array:
        return compare(flushed(a), flushed(b)) if flush else compare(a, b)

    if join is None:
        return value
    joined, other = JOINS[join], frame.predicate(operands[2])
    return lambda: joined(value(), other())


@builds("setp")
def set_predicate(frame: Frame, i: Instruction) -> Step:
    results = parts(i.operands[0])
    join = next((m for m in i.modifiers[1:] if m in JOINS), None)
    target, value = frame.target(results[0], "pred"), compared(frame, i, i.operands[1:])
    if len(results) == 1:
        return lambda mask: np.copyto(target, value(), where=mask)
    if join:
        raise Unsupported("two results of a joined comparison")
    opposite = frame.target(results[1], "pred")

    def step(mask: Mask) -> None:
        found = value()
        np.copyto(target, found, where=mask)
        np.copyto(opposite, ~found, where=mask)

    return step


@builds("set")
def set_value(frame: Frame, i: Instruction) -> Step:
    """All bits, or 1.0, where the comparison holds."""
    to = i.modifiers[-2]
    target, value = frame.target(i.operands[0], to), compared(frame, i, i.operands[1:])
    true: Any = 1.0 if to[0] == "f" else -1

    def step(mask: Mask) -> None:
        chosen = np.where(value(), true, 0)
        np.copyto(target, chosen.astype(target.dtype), where=mask)

    return step


@builds("selp")
def select(frame: Frame, i: Instruction) -> Step:
    a, b = (frame.source(o, i.type) for o in i.operands[1:3])
    target, choice = frame.target(i.operands[0], i.type), frame.predicate(i.operands[3])
    return lambda mask: np.copyto(target, np.where(choice(), a, b), where=mask)


@builds("slct")
def select_by_sign(frame: Frame, i: Instruction) -> Step:
    """The first where the third is not negative; of NaN the second."""
    kind, by = i.modifiers[-2], i.type
    a, b = (frame.source(o, kind) for o in i.operands[1:3])
    target, choice = frame.target(i.operands[0], kind), frame.source(i.operands[3], by)
    return lambda mask: np.copyto(target, np.where(choice >= 0, a, b), where=mask)
