"""Kernels called one by one: buffers with guard zones, random contents, argument tables."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.interpret import run_statement
from tilewright.loops.ir import (
    Apply,
    Buffer,
    Const,
    Expr,
    Kernel,
    Load,
    Node,
    Store,
    Var,
    dtype_of,
    rewrite,
    strides_of,
    walk,
)
from tilewright.loops.scalars import ScalarOp

GUARD_BYTES = 4096
LINE_BYTES = 64
FLOAT_POISON, INTEGER_POISON = 0xFF, 0x55  # a float of such bytes is a NaN that no kernel computes
MOST = 1000  # random integers of which nothing is known
TRIED = 60  # values for each index that is checked
NEVER_ZERO = frozenset((ScalarOp.DIV, ScalarOp.REM, ScalarOp.MOD))

Arrays = dict[str, np.ndarray]
"""The elements of buffers as they lie in memory, gaps included, by name."""


@dataclass(frozen=True)
class Code:
    """A kernel that can be called, and how: see `Emitted`."""

    address: int
    numbers: tuple[int, ...]
    iterations: int | None
    checks: bool

    def cut(self, pieces: int) -> tuple[int, int]:
        """Tasks and the iterations of each, for about so many tasks."""
        if self.iterations is None:
            return 1, 0
        chunk = -(-self.iterations // max(1, min(pieces, self.iterations)))
        return -(-self.iterations // max(chunk, 1)), chunk


def footprint(b: Buffer) -> int:
    """Elements from the first to the last in memory, gaps included; at least one."""
    if 0 in b.shape:
        return 1
    return 1 + sum((n - 1) * s for n, s in zip(b.shape, strides_of(b), strict=True))


def kept_as(dtype: DType) -> np.dtype:  # type: ignore[type-arg]
    """How elements are held here: booleans as the bytes that they are."""
    return np.dtype(np.uint8) if dtype is DType.BOOL else dtype.numpy


def shaped(b: Buffer, flat: np.ndarray) -> np.ndarray:
    """The buffer's elements as an array of its shape that shares memory with `flat`."""
    steps = [s * flat.itemsize for s in strides_of(b)]
    view = flat.view(np.bool_) if b.dtype is DType.BOOL and flat.dtype == np.uint8 else flat
    if 0 in b.shape:
        return np.empty(b.shape, view.dtype)
    return np.lib.stride_tricks.as_strided(view, b.shape, steps)


def poison(b: Buffer) -> np.ndarray:
    """What an output holds before a kernel has written it."""
    raw = FLOAT_POISON if b.dtype.is_float else INTEGER_POISON
    dtype = kept_as(b.dtype)
    return np.full(footprint(b) * dtype.itemsize, raw, np.uint8).view(dtype)


class Memory:
    """Buffers of one call, each between guard zones of random bytes.

    Those that are `loose` are aligned no better than their elements are, as a caller's arrays
    may be; the others to whole cache lines.
    """

    def __init__(
        self,
        params: Sequence[Buffer],
        contents: Mapping[str, np.ndarray],
        loose: frozenset[str],
        random: np.random.Generator,
    ) -> None:
        self.arrays: Arrays = {}
        self._zones: list[tuple[str, np.ndarray, np.ndarray]] = []
        for b in params:
            shift = contents[b.name].itemsize if b.name in loose else 0
            self.arrays[b.name] = self._guarded(b.name, contents[b.name], shift, random)

    def _guarded(
        self, name: str, content: np.ndarray, shift: int, random: np.random.Generator
    ) -> np.ndarray:
        raw = np.empty(content.nbytes + 2 * GUARD_BYTES + 2 * LINE_BYTES, np.uint8)
        start = GUARD_BYTES + -(raw.ctypes.data + GUARD_BYTES) % LINE_BYTES + shift
        end = start + content.nbytes
        for zone in (raw[:start], raw[end:]):
            zone[:] = random.integers(0, 256, zone.size, np.uint8)
            self._zones.append((name, zone, zone.copy()))
        array = raw[start:end].view(content.dtype)
        array[:] = content
        return array

    def spilled(self) -> str | None:
        """The buffer beside which something was written, if there is one."""
        return next((n for n, zone, was in self._zones if not np.array_equal(zone, was)), None)


class Caller:
    """Calls kernels on memory."""

    def __init__(self, params: Sequence[Buffer]) -> None:
        self._params = params

    def __call__(self, code: Code, memory: Memory, chunk: int, tasks: Iterable[int]) -> bool:
        """Runs these tasks one by one; whether they have reported bad data."""
        errors = np.zeros(1, np.int64)
        pointers = [memory.arrays[b.name].ctypes.data for b in self._params]
        table = np.full(64 + len(pointers) + len(code.numbers), 0x5555_5555_5555_5555, np.int64)
        values = [errors.ctypes.data, *pointers, *code.numbers, chunk]
        table[: len(values)] = values
        function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(code.address)
        for task in tasks:
            function(task, table.ctypes.data)
        return bool(errors[0])


def drawn(
    kernel: Kernel, random: np.random.Generator, attempt: int = 0, special: bool = False
) -> Arrays:
    """Random contents for what the kernel reads, in the ranges that are known of integers.

    Later attempts draw less of them; `special` floats have some infinities, NaNs and zeros among
    them.
    """
    allowed = {} if attempt else _allowed(kernel, random)
    return {
        b.name: _drawn(b, allowed.get(b.name), random, attempt, special)
        for b in kernel.params
        if b.name not in kernel.outputs
    }


def _drawn(
    b: Buffer, allowed: np.ndarray | None, random: np.random.Generator, attempt: int, special: bool
) -> np.ndarray:
    size, dtype = footprint(b), kept_as(b.dtype)
    if b.dtype.is_float:
        found = random.standard_normal(size, np.float32).astype(dtype)
        if special:
            chosen = random.random(size) < SPECIAL_SHARE
            found[chosen] = random.choice(SPECIALS, int(chosen.sum())).astype(dtype)
        return found
    if b.dtype is DType.BOOL:
        return random.integers(0, 2, size, np.uint8)
    if b.values is not None:
        return random.integers(b.values[0], b.values[1], size, endpoint=True).astype(dtype)
    if allowed is not None and allowed.size:
        return random.choice(allowed, size).astype(dtype)
    return random.integers(*_range(b.dtype, attempt), size).astype(dtype)


SPECIALS = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
SPECIAL_SHARE = 1 / 64


def _range(dtype: DType, attempt: int) -> tuple[int, int]:
    """From which value on and below which integers are drawn."""
    if attempt:
        return [(0, 2), (0, 1), (1, 2)][attempt - 1]
    info = np.iinfo(dtype.numpy)
    return max(int(info.min), -MOST), min(int(info.max), MOST) + 1


ATTEMPTS = 4


def _allowed(kernel: Kernel, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Some integers that the kernel's checks let pass, by the buffers that they are in."""
    found: dict[str, np.ndarray] = {}
    for n in walk(kernel.body):
        match n:
            case Apply(op=ScalarOp.CHECK, args=(index, Const(value=extent))):
                for load in walk(index):
                    if isinstance(load, Load):
                        passing = _passing(index, load.buffer, int(extent), random)
                        before = found.get(load.buffer.name, passing)
                        found[load.buffer.name] = np.intersect1d(before, passing)
            case Apply(op=op, args=(_, divisor)) if op in NEVER_ZERO and dtype_of(n).is_integer:
                for load in walk(divisor):
                    if isinstance(load, Load):
                        found.setdefault(load.buffer.name, np.arange(1, MOST))
    return found


def _passing(index: Expr, buffer: Buffer, extent: int, random: np.random.Generator) -> np.ndarray:
    """Elements of the buffer for which 0 <= index < extent, if it depends on nothing else; then
    also negative ones may be among them."""
    ends = np.arange(-2, 3)
    tried = [ends, ends - extent, ends + extent, random.integers(-extent, extent, TRIED)]
    info = np.iinfo(buffer.dtype.numpy)
    values = np.unique(np.concatenate(tried))
    values = values[(values >= info.min) & (values <= info.max)]
    outcome = Buffer("outcome", DType.I64, ())
    passing = []
    for value in values.tolist():
        const = Const(value, buffer.dtype)
        fixed = rewrite(index, lambda n, c=const: c if _reads(n, buffer) else None)  # type: ignore[misc]
        if any(isinstance(n, (Var, Load)) for n in walk(fixed)):
            return np.arange(extent)
        array = np.zeros((), np.int64)
        run_statement(Store(outcome, (), fixed), {}, {outcome.name: array})  # type: ignore[arg-type]
        if 0 <= int(array) < extent:
            passing.append(value)
    return np.array(passing, np.int64)


def _reads(n: Node, buffer: Buffer) -> bool:
    return isinstance(n, Load) and n.buffer.name == buffer.name
