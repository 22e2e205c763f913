"""Copies of an operand's rectangle into shared memory, by all threads of a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tilewright.loops.affine import Range
from tilewright.loops.ir import (
    Alloc,
    Block,
    Buffer,
    Expr,
    For,
    If,
    Load,
    LoopKind,
    Stmt,
    Store,
    Var,
    index_const,
)
from tilewright.loops.locate import offset
from tilewright.ops.common import minimum, select
from tilewright.schedule.attention import GROUP, ZERO, baked, load_of, reading, registers
from tilewright.schedule.cooperate import THREAD
from tilewright.schedule.vectors import is_adjacent

Element = Callable[[Expr, Expr], Expr]  # line, place in it: the operand there
WITHIN = "v"  # the axis within a group


@dataclass(frozen=True)
class Rectangle:
    """`lines` x `length` elements of an operand. Only the first `valid` of a line exist: what lies
    beyond is zero in an incomplete group, otherwise any number that the operand holds."""

    name: str
    lines: int
    length: int
    valid: int
    element: Element

    def statement(self, target: Buffer, threads: int, ranges: Mapping[str, Range]) -> Stmt:
        """What one thread copies: neighbours have what lies side by side in memory."""
        line, place = Var("line"), Var("place")
        load = load_of(self.element(line, place))
        sizes = {"line": (0.0, self.lines - 1.0), "place": (0.0, self.length - 1.0)}
        form = offset(load.buffer, load.index, {**ranges, **sizes})
        if form.coefficient("place") != 1 and form.coefficient("line") == 1:
            return self._across(target, threads)
        return self._by_groups(target, threads, ranges) or self._along(target, threads)

    @property
    def _share(self) -> Var:
        return Var(f"{self.name}_share")

    def _by_groups(self, target: Buffer, threads: int, ranges: Mapping[str, Range]) -> Stmt | None:
        """Vectors of whole groups, where the operand has such; the last one again beyond them."""
        if self.valid % GROUP:
            return None
        groups = self.length // GROUP
        at: Expr = self._share * threads + Var(THREAD)
        group = at % groups
        if self.valid != self.length:
            group = minimum(group, self.valid // GROUP - 1)
        line, place = at // groups, at % groups * GROUP + Var(WITHIN)
        value = self.element(line, group * GROUP + Var(WITHIN))
        source = load_of(value)
        copy = Store(target, (line, place), source)
        loop = For(WITHIN, index_const(GROUP), copy, LoopKind.VECTOR, baked=True)
        if not is_adjacent(source.buffer, source.index, loop, ranges):
            return None
        body = loop if value is source else _computed(loop, value, source, target, (line, place))
        return self._shared_out(body, at, self.lines * groups, threads)

    def _along(self, target: Buffer, threads: int) -> Stmt:
        at: Expr = self._share * threads + Var(THREAD)
        copy = self._single(target, at // self.length, at % self.length)
        return self._shared_out(copy, at, self.lines * self.length, threads)

    def _across(self, target: Buffer, threads: int) -> Stmt:
        at: Expr = self._share * threads + Var(THREAD)
        copy = self._single(target, at % self.lines, at // self.lines)
        return self._shared_out(copy, at, self.lines * self.length, threads)

    def _single(self, target: Buffer, line: Expr, place: Expr) -> Store:
        if self.valid == self.length:
            return Store(target, (line, place), self.element(line, place))
        value = self.element(line, minimum(place, self.valid - 1))
        return Store(target, (line, place), select(place < self.valid, value, ZERO))

    def _shared_out(self, copy: Stmt, at: Expr, count: int, threads: int) -> Stmt:
        if count % threads:
            copy = If(at < count, copy)
        return baked(self._share.name, -(-count // threads), copy)


def _computed(
    loop: For, value: Expr, source: Load, target: Buffer, place: tuple[Expr, ...]
) -> Stmt:
    """A vector by way of registers, from which the elements are computed."""
    held = registers("held", GROUP, dtype=source.buffer.dtype)
    at = (Var(WITHIN),)
    read = replace(loop, body=Store(held, at, source))
    store = Store(target, place, reading(value, source, Load(held, at)))
    return Alloc(held, Block((read, replace(loop, body=store, kind=LoopKind.SERIAL))))


def vector(axis: str, count: int, copy: Store) -> Stmt:
    """Copies of `count` groups."""
    inner = For(WITHIN, index_const(GROUP), copy, LoopKind.VECTOR, baked=True)
    return baked(axis, count, inner)
