"""Loops over a few adjacent elements, in which memory is read and written by vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tilewright.errors import ScheduleError
from tilewright.loops.affine import Range
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    children,
    map_children,
    walk,
)
from tilewright.loops.locate import axis_ranges, find_loop, offset

VECTOR_BYTES = 16  # of the widest access of one thread


@dataclass(frozen=True)
class Vectorize:
    """Read and write the elements along a short innermost loop by vectors where they are adjacent.

    The loop's operands are staged in a thread's registers: copies by vector, then the loop.
    """

    axis: str

    def __call__(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.axis)
        if loop is None or not isinstance(loop.extent, Const) or not isinstance(loop.body, Store):
            raise ScheduleError(f"{self}: no loop of a fixed extent around one store")
        staged = by_vectors(loop, axis_ranges(kernel.body))
        if staged is loop:
            raise ScheduleError(f"{self}: nothing is adjacent")
        return replace(kernel, body=_replaced(kernel.body, loop, staged))


def lanes_for(bits: int) -> int:
    """Elements of the widest vector."""
    return VECTOR_BYTES * 8 // max(bits, 8)


def by_vectors(loop: For, ranges: Mapping[str, Range]) -> Stmt:
    """The loop with its adjacent operands copied in, and its result copied out, by vectors; the
    loop itself where there are none."""
    return _Staging(loop, ranges).run()


def is_adjacent(b: Buffer, index: tuple[Expr, ...], loop: For, ranges: Mapping[str, Range]) -> bool:
    """Whether the loop steps through one aligned vector of the buffer."""
    assert isinstance(loop.extent, Const)
    count = int(loop.extent.value)
    if count * b.dtype.itemsize not in (2, 4, 8, VECTOR_BYTES) or b.space is not Space.GLOBAL:
        return False
    form = offset(b, index, ranges)
    if form.coefficient(loop.axis) != 1 or loop.axis in form.nonlinear_axes():
        return False
    rest = form.without(loop.axis)
    return rest.constant % count == 0 and all(c % count == 0 for _, c in rest.terms)


@dataclass
class _Staging:
    loop: For
    ranges: Mapping[str, Range]
    staged: dict[Load, Buffer] = field(default_factory=dict)

    def run(self) -> Stmt:
        s = self.loop.body
        if not isinstance(s, (Store, Accumulate)):
            return self.loop
        found = [
            n for n in _always_read(s) if is_adjacent(n.buffer, n.index, self.loop, self.ranges)
        ]
        for n in found:
            if n not in self.staged:
                self.staged[n] = self._registers(n.buffer)
        out = self._result(s)
        if not self.staged and out is None:
            return self.loop
        inner: Stmt = self._reading(s)
        if out is not None:
            inner = Store(out, (Var(self.loop.axis),), inner.value)  # type: ignore[union-attr]
        parts: list[Stmt] = [
            self._loop(Store(b, (Var(self.loop.axis),), n), True) for n, b in self.staged.items()
        ]
        parts.append(self._loop(inner, False))
        if out is not None:
            value = Load(out, (Var(self.loop.axis),))
            parts.append(self._loop(replace(s, value=value), True))
        body: Stmt = Block(tuple(parts))
        for b in (*self.staged.values(), *([out] if out else [])):
            body = Alloc(b, body)
        return body

    def _registers(self, b: Buffer) -> Buffer:
        count = int(self.loop.extent.value)  # type: ignore[union-attr]
        name = f"{self.loop.axis}_v{len(self.staged)}"
        return Buffer(name, b.dtype, (count,), space=Space.LOCAL)

    def _result(self, s: Store | Accumulate) -> Buffer | None:
        if isinstance(s, Accumulate) or not is_adjacent(s.buffer, s.index, self.loop, self.ranges):
            return None
        return replace(self._registers(s.buffer), name=f"{self.loop.axis}_out")

    def _reading(self, s: Store | Accumulate) -> Store | Accumulate:
        def visit(n: Node) -> Node:
            if isinstance(n, Load) and n in self.staged:
                return Load(self.staged[n], (Var(self.loop.axis),))
            return map_children(n, visit)

        return replace(s, value=visit(s.value))  # type: ignore[arg-type]

    def _loop(self, s: Stmt, is_copy: bool) -> For:
        kind = LoopKind.VECTOR if is_copy else LoopKind.SERIAL
        return replace(self.loop, body=s, kind=kind, baked=True)


def _always_read(s: Store | Accumulate) -> list[Load]:
    """Loads of the value that happen whatever the elements are: those in no choice."""
    found: dict[Load, None] = {}

    def visit(n: Node) -> None:
        if isinstance(n, Load):
            if not any(isinstance(m, Load) for i in n.index for m in walk(i)):
                found[n] = None
            return
        for c in (n.condition,) if isinstance(n, Select) else children(n):
            visit(c)

    visit(s.value)
    return list(found)


def _replaced(s: Stmt, old: Stmt, new: Stmt) -> Stmt:
    if s is old:
        return new
    if isinstance(s, Block):
        return Block(tuple(_replaced(t, old, new) for t in s.stmts))
    if isinstance(s, (For, Alloc)) or hasattr(s, "body"):
        return replace(s, body=_replaced(s.body, old, new))  # type: ignore[arg-type,union-attr]
    return s
