"""Moves between registers and memory, and atomic updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.access import LOCAL_WINDOW, SHARED_WINDOW, WINDOW, Piece, Report
from ptx.errors import Unsupported
from ptx.frame import TYPES, Frame, Mask, Step, builds, parts
from ptx.memory import GLOBAL_BASE, WORDS, Array, Use
from ptx.syntax import Address, Instruction, Several, Symbol

SPACES = {"global": "global", "const": "global", "shared": "shared", "local": "local"}
WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0, "const": 0, "param": 0}


def space_of(i: Instruction) -> str:
    """The space that a modifier names, or generic."""
    names = [m.split("::")[0] for m in i.modifiers]
    return next((SPACES[n] for n in names if n in SPACES), "generic")


def chosen(mask: Mask) -> Any:
    return slice(None) if mask is True else np.flatnonzero(mask)


def reporter(frame: Frame, i: Instruction) -> Report:
    return lambda kind, thread, text: frame.fault(kind, i, thread, text)


@builds("mov")
def move(frame: Frame, i: Instruction) -> Step:
    to, source = i.operands
    if isinstance(source, Several):
        return join(frame, i, source)
    if isinstance(to, Several):
        return split(frame, i, to)
    target, value = frame.target(to, i.type), frame.source(source, i.type)
    return lambda mask: np.copyto(target, value, where=mask)


def join(frame: Frame, i: Instruction, source: Several) -> Step:
    """`{low, high}` in one register."""
    size = np.dtype(TYPES[i.type]).itemsize
    width = 8 * size // len(source.items)
    word = WORDS[size]
    values = [frame.source(item, f"u{width}") for item in source.items]
    target = frame.target(i.operands[0], f"u{8 * size}")

    def step(mask: Mask) -> None:
        whole = values[0].astype(word)
        for k, value in enumerate(values[1:], 1):
            whole = whole | (value.astype(word) << word(width * k))
        np.copyto(target, whole, where=mask)

    return step


def split(frame: Frame, i: Instruction, to: Several) -> Step:
    """One register as `{low, high}`."""
    size = np.dtype(TYPES[i.type]).itemsize
    width = 8 * size // len(to.items)
    word, small = WORDS[size], WORDS[width // 8]
    value = frame.source(i.operands[1], f"u{8 * size}")
    targets = [frame.target(item, f"u{width}") for item in to.items]

    def step(mask: Mask) -> None:
        pieces = [(value >> word(width * k)).astype(small) for k in range(len(targets))]
        for target, piece in zip(targets, pieces, strict=True):
            np.copyto(target, piece, where=mask)

    return step


@builds("cvta")
def convert_address(frame: Frame, i: Instruction) -> Step:
    """Between the addresses of a space and generic ones."""
    space = next(m.split("::")[0] for m in i.modifiers if m.split("::")[0] in WINDOWS)
    window = np.uint64(WINDOWS[space])
    function = np.subtract if i.has("to") else np.add
    value, target = frame.source(i.operands[1], "u64"), frame.target(i.operands[0], "u64")
    return lambda mask: function(value, window, out=target, where=mask)


@builds("isspacep")
def is_in_space(frame: Frame, i: Instruction) -> Step:
    space = i.type.split("::")[0]
    value, target = frame.source(i.operands[1], "u64"), frame.target(i.operands[0], "pred")
    if space in ("global", "const"):
        return lambda mask: np.copyto(target, value >= GLOBAL_BASE, where=mask)
    number = np.uint64(WINDOWS[space] // WINDOW)
    return lambda mask: np.copyto(target, value // np.uint64(WINDOW) == number, where=mask)


@builds("ld", "ldu")
def load(frame: Frame, i: Instruction) -> Step:
    if any(m.split("::")[0] == "param" for m in i.modifiers):
        return load_parameter(frame, i)
    space, report, kind = space_of(i), reporter(frame, i), TYPES[i.type]
    word = np.dtype(kind).itemsize
    targets = [frame.extended_target(o, i.type) for o in parts(i.operands[0])]
    address, spaces, count = frame.address(i.operands[1]), frame.spaces, len(targets)
    needed = needed_words(i.used_bytes, word, count)

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        rows = spaces.read(space, address()[threads], threads, word, count, report, needed)
        for k, target in enumerate(targets):
            column = rows[:, k].view(kind)
            if target.dtype.itemsize == word:
                column = column.view(target.dtype)
            target[threads] = column

    return step


def needed_words(used: int | None, word: int, count: int) -> tuple[int, ...] | None:
    """Which words of a vector matter; None for all."""
    if used is None:
        return None
    ones = (1 << word) - 1
    return tuple(k for k in range(count) if used >> k * word & ones)


def parameter(frame: Frame, i: Instruction, place: Any, kind: str) -> Array:
    """A parameter's bytes from an offset on, as a value or one of each thread."""
    if not isinstance(place, Address) or not isinstance(place.base, Symbol):
        raise Unsupported("a parameter by address")
    size = np.dtype(TYPES[kind]).itemsize
    data: Array = frame.parameters[place.base.name]
    part = data[..., place.offset : place.offset + size]
    if part.shape[-1] != size:
        raise Unsupported(f"{size} bytes at {place.offset} of a parameter")
    value: Array = part.view(TYPES[kind])[..., 0]
    return value


def load_parameter(frame: Frame, i: Instruction) -> Step:
    place, size = i.operands[1], np.dtype(TYPES[i.type]).itemsize
    assert isinstance(place, Address)
    pairs = []
    for k, operand in enumerate(parts(i.operands[0])):
        target = frame.extended_target(operand, i.type)
        at = Address(place.base, place.offset + k * size)
        pairs.append((target, parameter(frame, i, at, i.type)))

    def step(mask: Mask) -> None:
        for target, value in pairs:
            same = value.dtype.itemsize == target.dtype.itemsize
            np.copyto(target, value.view(target.dtype) if same else value, where=mask)

    return step


@builds("st")
def store(frame: Frame, i: Instruction) -> Step:
    kind = f"u{8 * np.dtype(TYPES[i.type]).itemsize}"
    values = [frame.source(o, kind) for o in parts(i.operands[1])]
    if any(m.split("::")[0] == "param" for m in i.modifiers):
        return store_parameter(frame, i, values, kind)
    space, report, spaces = space_of(i), reporter(frame, i), frame.spaces
    address, word, total = frame.address(i.operands[0]), int(kind[1:]) // 8, frame.shape.total
    values = [np.broadcast_to(v, total) for v in values]

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        rows = np.stack([v[threads] for v in values], axis=1)
        spaces.write(space, address()[threads], threads, word, rows, report)

    return step


def store_parameter(frame: Frame, i: Instruction, values: list[Array], kind: str) -> Step:
    place, size = i.operands[0], int(kind[1:]) // 8
    assert isinstance(place, Address)
    places = [Address(place.base, place.offset + k * size) for k in range(len(values))]
    targets = [parameter(frame, i, at, kind) for at in places]

    def step(mask: Mask) -> None:
        for target, value in zip(targets, values, strict=True):
            np.copyto(target, value, where=mask)

    return step


UPDATES: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
SINGLE: dict[str, Callable[[Any, list[Any]], Any]] = {
    "exch": lambda old, v: v[0],
    "cas": lambda old, v: v[1] if old == v[0] else old,
    "inc": lambda old, v: 0 if old >= v[0] else old + 1,
    "dec": lambda old, v: v[0] if old == 0 or old > v[0] else old - 1,
}


@builds("red", "atom")
def update(frame: Frame, i: Instruction) -> Step:
    """Atomic updates of one place after the other, in the order of the threads."""
    kind, returns = i.type, i.name == "atom"
    if kind not in TYPES or kind in ("f16", "bf16", "f16x2", "bf16x2"):
        raise Unsupported(f"{kind}")
    name = next(m for m in i.modifiers if m in UPDATES or m in SINGLE)
    space, report, spaces = space_of(i), reporter(frame, i), frame.spaces
    address = frame.address(i.operands[int(returns)])
    total, size = frame.shape.total, np.dtype(TYPES[kind]).itemsize
    values = [np.broadcast_to(frame.source(o, kind), total) for o in i.operands[1 + returns :]]
    target = frame.target(i.operands[0], kind) if returns else None

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        for piece in spaces.pieces(space, address()[threads], threads, size, report):
            spaces.need(piece, size, report)
            spaces.use(piece, Use.UPDATE, size, report)
            operands = [v[threads][piece.rows] for v in values]
            old = apply(name, piece, TYPES[kind], operands, returns)
            if target is not None:
                target[np.arange(total)[threads][piece.rows]] = old

    return step


def apply(name: str, piece: Piece, kind: Any, operands: list[Array], returns: bool) -> Array:
    """Update the places; what they held before."""
    data = piece.region.typed(kind)
    places: Array = piece.offsets // np.dtype(kind).itemsize
    if name in UPDATES and not returns:
        UPDATES[name].at(data, places, operands[0])
        return places
    old = np.empty(len(places), kind)
    for k, place in enumerate(places):
        old[k] = data[place]
        now = [v[k] for v in operands]
        one = UPDATES[name](old[k], now[0]) if name in UPDATES else SINGLE[name](old[k], now)
        data[place] = one
    return old


@builds("membar", "prefetch", "prefetchu", "nanosleep", "griddepcontrol")
def nothing(frame: Frame, i: Instruction) -> Step:
    """Memory is always in order here."""
    return lambda mask: None
