"""What a loop nest costs at least: arithmetic operations, and bytes that must move.

Both are read off the loops as they are scheduled, so rows that two tiles share count twice.
Extents are taken at the upper ends of their intervals, and every condition as true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tilewright.loops.affine import Range, interval
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Buffer,
    Expr,
    For,
    Kernel,
    Load,
    Select,
    Space,
    Stmt,
    Store,
    children,
    dtype_of,
    strides_of,
    walk,
)
from tilewright.loops.scalars import ScalarOp

UNBOUNDED_EXTENT = 16.0  # taken for a loop whose extent comes from data

FREE = frozenset((ScalarOp.CHECK, ScalarOp.NOT))
SEVERAL = {
    ScalarOp.SQRT: 4,
    ScalarOp.RECIPROCAL: 4,
    ScalarOp.DIV: 4,
    ScalarOp.REM: 4,
    ScalarOp.SIGN: 2,
}
TRANSCENDENTAL = {
    ScalarOp.EXP: 10,
    ScalarOp.EXP2: 8,
    ScalarOp.EXPM1: 12,
    ScalarOp.LOG: 12,
    ScalarOp.LOG1P: 14,
    ScalarOp.SIN: 16,
    ScalarOp.COS: 16,
    ScalarOp.TAN: 20,
    ScalarOp.ASIN: 16,
    ScalarOp.ACOS: 16,
    ScalarOp.ATAN: 16,
    ScalarOp.SINH: 16,
    ScalarOp.COSH: 16,
    ScalarOp.TANH: 16,
    ScalarOp.ASINH: 20,
    ScalarOp.ACOSH: 20,
    ScalarOp.ATANH: 20,
    ScalarOp.ERF: 20,
    ScalarOp.SIGMOID: 16,
    ScalarOp.RATIONAL_SIGMOID: 16,
    ScalarOp.RATIONAL_TANH: 16,
    ScalarOp.POW: 24,
}
WEIGHTS = dict.fromkeys(FREE, 0) | SEVERAL | TRANSCENDENTAL
"""Operations that a scalar function stands for, about; one where none are given."""


@dataclass(frozen=True)
class Cost:
    """Operations (a multiply-add is two), and bytes read and written at least once."""

    flops: float
    read: float
    written: float

    @property
    def bytes(self) -> float:
        """Read and written."""
        return self.read + self.written


@dataclass
class _Counts:
    """What the statements do so far: operations, and accesses of each global buffer."""

    flops: float = 0.0
    loads: dict[str, float] = field(default_factory=dict)
    stores: dict[str, float] = field(default_factory=dict)


def cost(kernel: Kernel) -> Cost:
    """The cost of one run. A buffer counts once, and only as far as it is touched."""
    counts = _Counts()
    _count(kernel.body, 1.0, {}, counts)
    read, written = (_moved(kernel.params, a) for a in (counts.loads, counts.stores))
    return Cost(counts.flops, read, written)


def operations(e: Expr) -> float:
    """Arithmetic operations of a value, those on axes alone aside; shared parts count once.

    Of a selection only one side runs: the dearer one counts.
    """
    return _operations(e, {})


def footprint_bytes(b: Buffer) -> float:
    """Bytes of the elements that a buffer has in memory: repeated ones once, gaps not at all."""
    span = 1 + sum((n - 1) * abs(s) for n, s in zip(b.shape, strides_of(b), strict=True))
    return float(min(math.prod(b.shape), span) * b.dtype.itemsize)


def _moved(params: Iterable[Buffer], accesses: dict[str, float]) -> float:
    touched = ((b, accesses.get(b.name, 0.0)) for b in params)
    return sum(min(footprint_bytes(b), n * b.dtype.itemsize) for b, n in touched)


def _count(s: Stmt, times: float, ranges: dict[str, Range], counts: _Counts) -> None:
    """Adds what `s` does when it runs `times` times."""
    match s:
        case For(axis=axis, extent=extent, body=body):
            most = interval(extent, ranges)[1]
            trips = max(most, 0.0) if math.isfinite(most) else UNBOUNDED_EXTENT
            inner = {**ranges, axis: (0.0, max(trips - 1, 0.0))}
            _count(body, times * trips, inner, counts)
        case Store(buffer=b, value=value):
            counts.flops += times * operations(value)
            _access(s, b, times, counts)
        case Accumulate(buffer=b, value=value):
            counts.flops += times * (operations(value) + 1)
            _touch(counts.loads, b, times)
            _access(s, b, times, counts)
        case _:
            for c in children(s):
                if isinstance(c, Stmt):
                    _count(c, times, ranges, counts)


def _access(s: Store | Accumulate, written: Buffer, times: float, counts: _Counts) -> None:
    _touch(counts.stores, written, times)
    for buffer in {id(n): n.buffer for n in walk(s) if isinstance(n, Load)}.values():
        _touch(counts.loads, buffer, times)


def _touch(accesses: dict[str, float], b: Buffer, times: float) -> None:
    if b.space is Space.GLOBAL:
        accesses[b.name] = accesses.get(b.name, 0.0) + times


def _operations(e: Expr, seen: dict[int, Expr]) -> float:
    if isinstance(e, Load) or id(e) in seen:
        return 0.0
    seen[id(e)] = e
    match e:
        case Select(condition=condition, then=then, otherwise=otherwise):
            sides = max(_operations(then, {**seen}), _operations(otherwise, {**seen}))
            return _operations(condition, seen) + sides
        case Apply(op=op, args=args):
            if _is_position(e):
                return 0.0
            return WEIGHTS.get(op, 1) + sum(_operations(a, seen) for a in args)
    return sum(_operations(c, seen) for c in children(e) if isinstance(c, Expr))


def _is_position(e: Apply) -> bool:
    """Whether this is arithmetic on axes: bounds of a padded window, the place of an element."""
    return not dtype_of(e.args[0]).is_float and not any(isinstance(n, Load) for n in walk(e))
