"""Loops over a few adjacent elements, in which memory is read and written by vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tilewright.errors import ScheduleError
from tilewright.loops.affine import Range
from tilewright.loops.facts import Facts, bounds
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    makes_checks,
    map_children,
    walk,
)
from tilewright.loops.locate import axis_ranges, offset
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.uniform import uniform

VECTOR_BYTES = 16  # of the widest access of one thread

Conditions = tuple[Expr, ...]


@dataclass(frozen=True)
class Vectorize:
    """Read and write the elements along short innermost loops by vectors where they are adjacent.

    A loop's operands are staged in a thread's registers: copies by vector, then the loop.
    """

    axis: str

    def __call__(self, kernel: Kernel) -> Kernel:
        ranges = axis_ranges(kernel.body)
        found = [n for n in walk(kernel.body) if isinstance(n, For) and n.axis == self.axis]
        if not found or not all(_is_simple(n) for n in found):
            raise ScheduleError(f"{self}: no loops of a fixed extent around one statement each")
        made = {id(n): by_vectors(n, ranges) for n in found}
        if all(made[id(n)] is n for n in found):
            raise ScheduleError(f"{self}: nothing is adjacent")
        return replace(kernel, body=_replaced(kernel.body, made))


def _is_simple(n: For) -> bool:
    return isinstance(n.extent, Const) and isinstance(n.body, (Store, Accumulate))


def lanes_for(bits: int) -> int:
    """Elements of the widest vector."""
    return VECTOR_BYTES * 8 // max(bits, 8)


def by_vectors(loop: For, ranges: Mapping[str, Range]) -> Stmt:
    """The loop with its adjacent operands copied in, and its result copied out, by vectors; the
    loop itself where there are none."""
    staging = Staging(loop, ranges)
    if not staging.is_of_use:
        return loop
    return staging.allocated(Block((*staging.reads(), staging.rest())))


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
class Staging:
    """The adjacent operands of a loop over a few elements, in registers.

    Where the loop stands in another one whose iterations each have registers of their own, `turn`
    is that loop's axis and extent. `facts` are what guards around the loop say.
    """

    loop: For
    ranges: Mapping[str, Range]
    turn: tuple[str, int] | None = None
    facts: Facts = field(default_factory=dict)
    staged: dict[tuple[Load, Conditions], Buffer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.loop.body
        self.statement: Stmt = s
        self.out: Buffer | None = None
        if isinstance(s, (Store, Accumulate)) and isinstance(self.loop.extent, Const):
            value: Expr = self._reading(s.value, (), False)  # type: ignore[assignment]
            self.statement = replace(s, value=value)
            if isinstance(s, Store) and self._is_adjacent(s):
                self.out = Buffer(f"{self.loop.axis}_out", s.buffer.dtype, (self.count,))
                self.out = replace(self.out, space=Space.LOCAL)

    @property
    def count(self) -> int:
        return int(self.loop.extent.value)  # type: ignore[union-attr]

    @property
    def is_of_use(self) -> bool:
        """Whether anything is adjacent."""
        return bool(self.staged) or self.out is not None

    def allocated(self, s: Stmt) -> Stmt:
        """The statement with the registers that it reads around it."""
        for b in self.staged.values():
            s = Alloc(b, s)
        return s

    def reads(self) -> list[Stmt]:
        """The copies into registers."""
        done: list[Stmt] = []
        for (load, conditions), b in self.staged.items():
            copy: Stmt = self._copy(Store(b, self._place, load))
            if conditions:
                copy = If(_all(conditions), copy)
            done.append(copy)
        return done

    def rest(self) -> Stmt:
        """The loop on registers, and the copy of its result."""
        s = self.statement
        if self.out is None or not isinstance(s, Store):
            return replace(self.loop, body=s, baked=True)
        here = (Var(self.loop.axis),)
        inner = replace(self.loop, body=Store(self.out, here, s.value), baked=True)
        copy = self._copy(replace(s, value=Load(self.out, here)))
        return Alloc(self.out, Block((inner, copy)))

    @property
    def _place(self) -> tuple[Expr, ...]:
        here = Var(self.loop.axis)
        return (Var(self.turn[0]), here) if self.turn else (here,)

    def _copy(self, s: Stmt) -> For:
        return replace(self.loop, body=s, kind=LoopKind.VECTOR, baked=True)

    def _is_adjacent(self, n: Load | Store) -> bool:
        return is_adjacent(n.buffer, n.index, self.loop, self.ranges)

    def _reading(self, n: Node, conditions: Conditions, unsure: bool) -> Node:
        """The node with reads of registers in it. It is evaluated under these conditions, which
        are the same for all lanes, and, if that is `unsure`, under others."""
        match n:
            case Load():
                return self._register(n, conditions, unsure) or n
            case Select(condition=c, then=then, otherwise=otherwise):
                holds = uniform(c, self.loop.axis, self.count, self.ranges)
                sides = (holds, Apply(ScalarOp.NOT, (holds,))) if holds is not None else (None,) * 2
                first, second = (
                    self._reading(e, conditions if s is None else (*conditions, s), s is None)
                    for e, s in zip((then, otherwise), sides, strict=True)
                )
                tested = self._reading(c, conditions, unsure)
                return replace(n, condition=tested, then=first, otherwise=second)  # type: ignore[arg-type]
        return map_children(n, lambda c: self._reading(c, conditions, unsure))

    def _register(self, n: Load, conditions: Conditions, unsure: bool) -> Load | None:
        """The register that holds an element, if all lanes may be read at once."""
        if not self._is_adjacent(n) or (unsure and not self._is_always_there(n)):
            return None
        conditions = () if unsure else conditions
        key = (n, ()) if (n, ()) in self.staged else (n, conditions)
        if key not in self.staged:
            shape = (self.turn[1], self.count) if self.turn else (self.count,)
            name = f"{self.loop.axis}_v{len(self.staged)}"
            self.staged[key] = Buffer(name, n.buffer.dtype, shape, space=Space.LOCAL)
        return Load(self.staged[key], self._place)

    def _is_always_there(self, n: Load) -> bool:
        """Whether the element may be read although nobody asks for it."""
        if any(makes_checks(i) for i in n.index):
            return False
        spans = (bounds(i, self.ranges, self.facts) for i in n.index)
        return all(a >= 0 and b < m for (a, b), m in zip(spans, n.buffer.shape, strict=True))


def _all(conditions: Conditions) -> Expr:
    found = conditions[0]
    for c in conditions[1:]:
        found = Apply(ScalarOp.AND, (found, c))
    return found


def _replaced(s: Stmt, made: Mapping[int, Stmt]) -> Stmt:
    """The statement with some of those in it replaced."""
    if id(s) in made:
        return made[id(s)]
    if isinstance(s, Block):
        return Block(tuple(_replaced(t, made) for t in s.stmts))
    if isinstance(s, (For, Alloc, If)):
        return replace(s, body=_replaced(s.body, made))
    return s
