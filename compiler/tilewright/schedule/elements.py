"""Maps: each thread computes some groups of neighbouring elements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import simplify_index, simplify_loads
from tilewright.loops.facts import learn, unproven
from tilewright.loops.ir import (
    Block,
    Const,
    Expr,
    For,
    If,
    Kernel,
    LoopKind,
    Stmt,
    Store,
    Var,
    index_const,
    substitute,
)
from tilewright.loops.locate import outer_loops
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.vectors import Staging

TURN, LANE = "turn", "lane"


@dataclass(frozen=True)
class Elements:
    """Compute a map by blocks of `threads`: `count` times each thread takes `lanes` neighbours.

    The elements are numbered as the loops go. Neighbouring threads have neighbouring groups; what
    a thread reads by vectors it reads for all of its groups before it writes any.
    """

    threads: int
    lanes: int = 1
    count: int = 1

    def __call__(self, kernel: Kernel) -> Kernel:
        loops = outer_loops(kernel.body)
        fixed = all(isinstance(n.extent, Const) for n in loops)
        if not loops or not fixed or not isinstance(loops[-1].body, Store):
            raise ScheduleError(f"{self}: no loops of fixed extents around one store")
        return replace(kernel, body=_Elements(self, loops, loops[-1].body).body())


class _Elements:
    def __init__(self, how: Elements, loops: list[For], store: Store) -> None:
        self.how, self.store = how, store
        self.axes = [(n.axis, int(n.extent.value)) for n in loops]  # type: ignore[union-attr]
        self.total = prod(n for _, n in self.axes)
        self.groups = self.total // how.lanes
        self.blocks = max(1, -(-self.groups // (how.threads * how.count)))
        sizes = {"block": self.blocks, THREAD: how.threads, TURN: how.count, LANE: how.lanes}
        self.ranges = {a: (0.0, n - 1.0) for a, n in sizes.items()}

    def body(self) -> Stmt:
        whole = self.by_groups()
        if rest := self.total - self.groups * self.how.lanes:
            here = Var("block") * self.how.threads + Var(THREAD)
            last = self.at(here + self.groups * self.how.lanes)
            whole = Block((whole, self.inside(here < rest, last, last)))
        by_threads = For(THREAD, index_const(self.how.threads), whole, LoopKind.THREAD)
        return For("block", index_const(self.blocks), by_threads, LoopKind.BLOCK)

    def at(self, element: Expr) -> Store:
        """The store of one element."""
        s: Store = substitute(self.store, unflattened(self.axes, element))  # type: ignore[assignment]
        index = tuple(simplify_index(i, self.ranges) for i in s.index)
        return replace(s, index=index, value=simplify_loads(s.value, self.ranges))

    @property
    def group(self) -> Expr:
        turns = self.how.count
        turn: Expr = Var("block") * turns + Var(TURN) if turns > 1 else Var("block")
        return turn * self.how.threads + Var(THREAD)

    def by_groups(self) -> Stmt:
        how = self.how
        if how.lanes == 1:
            store = self.at(self.group)
            return self.turns(self.guarded(store, store))
        store = self.at(self.group * how.lanes + Var(LANE))
        one: Store = substitute(store, {LANE: index_const(0)})  # type: ignore[assignment]
        loop = For(LANE, index_const(how.lanes), store, baked=True)
        turn = (TURN, how.count) if how.count > 1 else None
        facts = learn(self.group < self.groups, self.ranges, {})
        staging = Staging(loop, self.ranges, turn, facts)
        if staging.out is None:
            raise ScheduleError(f"{how}: the results do not lie side by side")
        reads, rest = staging.reads(), staging.rest()
        if turn is None or not reads:
            return self.turns(self.guarded(staging.allocated(Block((*reads, rest))), one))
        first = self.turns(self.guarded(Block(tuple(reads)), one))
        return staging.allocated(Block((first, self.turns(self.guarded(rest, one)))))

    def turns(self, s: Stmt) -> Stmt:
        if self.how.count == 1:
            return s
        return For(TURN, index_const(self.how.count), s, baked=True)

    def guarded(self, s: Stmt, one: Store) -> Stmt:
        """The statement for groups that are there; `one` is the store of a group's first."""
        whole = self.groups == self.blocks * self.how.threads * self.how.count
        return self.inside(None if whole else self.group < self.groups, s, one)

    def inside(self, condition: Expr | None, s: Stmt, one: Store) -> Stmt:
        """The statement under a condition, from which all follows that its indices need: what
        interval analysis does not see is written out."""
        facts = {} if condition is None else learn(condition, self.ranges, {})
        for c in unproven(one, self.ranges, facts):
            s = If(c, s)
        return s if condition is None else If(condition, s)
