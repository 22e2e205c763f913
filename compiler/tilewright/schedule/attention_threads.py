"""What schedules of an attention share: the registers of each thread, and the loops over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tilewright.dtypes import DType
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Buffer,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Node,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    rewrite,
)
from tilewright.loops.locate import axis_ranges
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.attention import RowAttention
from tilewright.schedule.cooperate import THREAD


@dataclass
class ThreadProgram(ABC):
    """A block of threads that computes a part of an attention."""

    of: RowAttention
    threads: int

    @abstractmethod
    def registers(self) -> Mapping[str, tuple[int, ...]]:
        """What each thread keeps, by name."""

    @cached_property
    def own(self) -> dict[str, Buffer]:
        return {
            name: Buffer(name, DType.F32, (self.threads, *shape), space=Space.THREAD)
            for name, shape in self.registers().items()
        }

    def at(self, name: str, *index: Expr) -> Load:
        """A thread's own element."""
        return Load(self.own[name], (Var(THREAD), *index))

    def put(self, name: str, *index: Expr, value: Expr) -> Store:
        return Store(self.own[name], (Var(THREAD), *index), value)

    def add(self, name: str, *index: Expr, value: Expr) -> Accumulate:
        return Accumulate(self.own[name], (Var(THREAD), *index), ScalarOp.ADD, value)

    def highest(self, name: str, value: Expr) -> Accumulate:
        """A register becomes the value if that is greater."""
        return Accumulate(self.own[name], (Var(THREAD),), ScalarOp.MAX, value)

    def by_threads(self, s: Stmt) -> For:
        return For(THREAD, index_const(self.threads), s, LoopKind.THREAD)

    def bound(
        self,
        kernel: Kernel,
        body: Stmt,
        shared: Sequence[Buffer],
        blocks: Sequence[tuple[str, int]],
    ) -> Kernel:
        """The kernel whose blocks run the body."""
        for b in (*self.own.values(), *shared):
            body = Alloc(b, body)
        for axis, n in reversed(blocks):
            body = For(axis, index_const(n), body, LoopKind.BLOCK)
        return replace(kernel, body=_simplified(body))


def _simplified(body: Stmt) -> Stmt:
    ranges = axis_ranges(body)

    def rule(n: Node) -> Node | None:
        if isinstance(n, (Store, Accumulate)):
            value = simplify_loads(n.value, ranges)
            return n if value is n.value else replace(n, value=value)
        return None

    return rewrite(body, rule)  # type: ignore[return-value]
