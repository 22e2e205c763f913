"""The registers of a batch of blocks, and what instructions are built from.

An instruction becomes a step: a function of the mask of active threads, with its operands' arrays
bound. The tables of builders are filled by the modules of the families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ptx.access import Spaces
from ptx.errors import InactiveLanes, PtxError, Unsupported
from ptx.memory import WORDS, Array
from ptx.program import Program
from ptx.syntax import (
    Address,
    Instruction,
    Integer,
    Negation,
    Operand,
    Real,
    Register,
    Several,
    Symbol,
)

LANES = 32
Mask = Any  # True where all threads are active, otherwise an array of bool
Step = Callable[[Mask], object]
Addresses = Callable[[], Array]

TYPES: dict[str, Any] = {
    "pred": np.bool_,
    **{f"b{8 * n}": t for n, t in WORDS.items()},
    **{f"u{8 * n}": t for n, t in WORDS.items()},
    **{"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64},
    **{"f16": np.float16, "f32": np.float32, "f64": np.float64},
    **{"bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32, "tf32": np.uint32},
}


@dataclass(frozen=True)
class Shape:
    """A batch: blocks of `threads`, in rows of whole warps."""

    blocks: int
    threads: int

    @property
    def row(self) -> int:
        return -(-self.threads // LANES) * LANES

    @property
    def total(self) -> int:
        return self.blocks * self.row


class Frame:
    """All state of a batch but the places where threads are."""

    def __init__(self, program: Program, shape: Shape, spaces: Spaces) -> None:
        self.program, self.shape, self.spaces = program, shape, spaces
        count = shape.total
        self.registers = {n: np.zeros(count, TYPES[k]) for n, k in program.registers.items()}
        self.carry = np.zeros(count, np.bool_)
        self.thread = np.tile(np.arange(shape.row), shape.blocks)
        self.lane = self.thread % LANES
        self.warp_start = np.arange(count) - self.lane
        self.specials: dict[str, Array] = {}
        self.symbols: dict[str, int] = {}
        self.parameters: dict[str, Array] = {}
        self.alive = np.zeros(count, np.bool_)
        self.first_block = 0
        self.copies: object = None  # asynchronous copies, where a kernel makes some
        self.bulk: Any = None  # copies of boxes, and their barriers
        self.warpgroups: Any = None  # products under way

    def poison(self) -> None:
        """No value of an earlier batch is left in a register."""
        self.copies = self.bulk = self.warpgroups = None
        for register in self.registers.values():
            register.view(np.uint8).fill(1 if register.dtype == np.bool_ else 0xA5)

    # Operands.

    def source(self, operand: Operand, kind: str) -> Array:
        """What an operand holds, as a view that stays valid; of a wide register its low part."""
        dtype = np.dtype(TYPES[kind])
        match operand:
            case Register(name):
                return narrowed(self.registers[name], dtype)
            case Integer(value):
                return of_integer(value, dtype)
            case Real(bits, width):
                return of_real(bits, width, dtype)
            case Symbol(name) if name in self.specials:
                return narrowed(self.specials[name], dtype)
            case Symbol(name) if name in self.symbols:
                return of_integer(self.symbols[name], dtype)
        raise Unsupported(f"{operand} as a {kind}")

    def predicate(self, operand: Operand) -> Callable[[], Array]:
        """A predicate operand, which may be negated."""
        if isinstance(operand, Negation):
            negated = self.registers[operand.predicate.name]
            return lambda: ~negated
        plain = self.source(operand, "pred")
        return lambda: plain

    def target(self, operand: Operand, kind: str) -> Array:
        """The array that a result of this type goes to; `_` takes and forgets it."""
        dtype = np.dtype(TYPES[kind])
        if isinstance(operand, Symbol) and operand.name == "_":
            return np.zeros(self.shape.total, dtype)
        if not isinstance(operand, Register):
            raise Unsupported(f"{operand} as a result")
        register = self.registers[operand.name]
        if register.dtype.itemsize != dtype.itemsize:
            raise Unsupported(f"a result of type {kind} in {operand.name}")
        return register.view(dtype)

    def extended_target(self, operand: Operand, kind: str) -> Array:
        """As `target`, where a register may be wider than the type: results are extended to it."""
        if isinstance(operand, Register):
            register = self.registers[operand.name]
            if register.dtype.itemsize > np.dtype(TYPES[kind]).itemsize:
                sign = "s" if kind[0] == "s" else "u"
                return register.view(TYPES[f"{sign}{8 * register.dtype.itemsize}"])
        return self.target(operand, kind)

    def address(self, operand: Operand) -> Addresses:
        """Byte addresses of all threads."""
        if not isinstance(operand, Address):
            raise Unsupported(f"{operand} as an address")
        offset = operand.offset
        if not isinstance(operand.base, Register):
            start = int(self.source(operand.base, "s64")) + offset
            fixed = np.full(self.shape.total, start, np.int64)
            return lambda: fixed
        register = self.registers[operand.base.name]
        if register.dtype.itemsize == 8:
            wide = register.view(np.int64)
            return (lambda: wide + offset) if offset else (lambda: wide)
        narrow = register.view(np.uint32)
        return lambda: narrow.astype(np.int64) + offset

    # Faults.

    def thread_name(self, index: int) -> str:
        block = self.first_block + index // self.shape.row
        return f"block {block} thread {self.thread[index]}"

    def fault(
        self, kind: type[PtxError], instruction: Instruction, index: int, text: str
    ) -> NoReturn:
        raise kind(f"{instruction}: {self.thread_name(index)}: {text}")

    def whole_warps(self, instruction: Instruction, mask: Mask) -> None:
        """InactiveLanes unless every warp executes this with all of its lanes or none."""
        if mask is True:
            return
        rows = mask.reshape(-1, LANES)
        partial = rows.any(1) & ~rows.all(1)
        if partial.any():
            warp = int(partial.argmax())
            lane = int(rows[warp].argmin())
            self.fault(InactiveLanes, instruction, warp * LANES + lane, f"lane {lane} is inactive")


def narrowed(array: Array, dtype: Any) -> Array:
    if array.dtype == np.bool_ or dtype == np.bool_:
        if array.dtype != dtype:
            raise Unsupported(f"{array.dtype} as {dtype}")
        return array
    step = array.dtype.itemsize // dtype.itemsize
    if not step:
        raise Unsupported(f"a register of {array.dtype} as {dtype}")
    low: Array = array.view(dtype)[::step]
    return low


def of_integer(value: int, dtype: Any) -> Array:
    """A constant's low bits, or its value where a float is wanted."""
    if dtype == np.bool_:
        return np.array(bool(value))
    size = dtype.itemsize
    return np.frombuffer((value % (1 << 8 * size)).to_bytes(size, "little"), dtype)[0:1].reshape(())


def of_real(bits: int, width: int, dtype: Any) -> Array:
    """A constant of its own width, or rounded to the instruction's type."""
    size = width // 8
    own = np.frombuffer(bits.to_bytes(size, "little"), np.float32 if width == 32 else np.float64)
    same = own.view(dtype) if dtype.itemsize == size else own.astype(dtype)
    return same.reshape(())


Builder = Callable[[Frame, Instruction], Step]
BUILDERS: dict[str, Builder] = {}


def builds(*names: str) -> Callable[[Builder], Builder]:
    """This function builds the instructions of these names."""

    def note(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return note


def parts(operand: Operand) -> tuple[Operand, ...]:
    """The components of a vector, or the operand alone."""
    return operand.items if isinstance(operand, Several) else (operand,)
