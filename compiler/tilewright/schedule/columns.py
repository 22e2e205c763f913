"""Sums of what lies apart in memory, for results that lie side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import simplify_index, simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Barrier,
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
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    rewrite,
    substitute,
    walk,
)
from tilewright.loops.locate import axis_ranges, outer_loops
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.vectors import by_vectors

COLUMN, LANE = "column_block", "lane"
FEW_LINES = 4  # that each line adds up itself


@dataclass(frozen=True)
class Columns:
    """Share what is summed for neighbouring results among the lines of a block.

    A line is `width` threads side by side along `axis`, each with `lanes` results; every
    `depth`-th element of a sum belongs to one of the `depth` lines. Their sums meet in shared
    memory, where each line adds them up in one order.
    """

    axis: str
    width: int
    depth: int
    lanes: int = 1

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.width * self.depth

    def __call__(self, kernel: Kernel) -> Kernel:
        loops = outer_loops(kernel.body)
        if not loops or loops[-1].axis != self.axis or not _is_fixed(kernel):
            raise ScheduleError(f"{self}: the axis is not that of the innermost results")
        columns = int(loops[-1].extent.value)  # type: ignore[union-attr]
        if columns % self.lanes:
            raise ScheduleError(f"{self}: {columns} results are no whole vectors")
        return _Columns(self, kernel, loops, columns).run()


def _is_fixed(kernel: Kernel) -> bool:
    return all(isinstance(n.extent, Const) for n in walk(kernel.body) if isinstance(n, For))


class _Columns:
    def __init__(self, how: Columns, kernel: Kernel, loops: list[For], columns: int) -> None:
        self.how, self.kernel, self.loops = how, kernel, loops
        self.groups = columns // how.lanes
        self.blocks = -(-self.groups // how.width)
        self.homes: dict[str, Buffer] = {}
        self.shared = 0
        sizes = {n.axis: n.extent.value for n in loops[:-1]}  # type: ignore[union-attr]
        sizes |= {COLUMN: self.blocks, THREAD: how.threads, LANE: how.lanes}
        self.ranges = {a: (0.0, int(n) - 1.0) for a, n in sizes.items()}

    def run(self) -> Kernel:
        body = self.together(self.loops[-1].body)
        body = For(COLUMN, index_const(self.blocks), body, LoopKind.BLOCK)
        for n in reversed(self.loops[:-1]):
            body = replace(n, body=body, kind=LoopKind.BLOCK)
        ranges = axis_ranges(body)

        def rule(n: Node) -> Node | None:
            if not isinstance(n, (Store, Accumulate)):
                return None
            index = tuple(simplify_index(i, ranges) for i in n.index)
            return replace(n, index=index, value=simplify_loads(n.value, ranges))

        return replace(self.kernel, body=rewrite(body, rule))  # type: ignore[arg-type]

    # -- where threads are

    @property
    def line(self) -> Expr:
        return Var(THREAD) // self.how.width

    @property
    def side(self) -> Expr:
        return Var(THREAD) % self.how.width

    @property
    def group(self) -> Expr:
        return Var(COLUMN) * self.how.width + self.side

    def by_threads(self, s: Stmt) -> For:
        """A statement of the threads whose results are there."""
        if self.groups % self.how.width:
            s = If(self.group < self.groups, s)
        return For(THREAD, index_const(self.how.threads), s, LoopKind.THREAD)

    def by_lanes(self, s: Store | Accumulate) -> Stmt:
        """A statement for each result of a thread."""
        if self.how.lanes == 1:
            return self.placed(s, index_const(0))
        loop = For(LANE, index_const(self.how.lanes), self.placed(s, Var(LANE)), baked=True)
        return by_vectors(loop, self.ranges)

    def placed(self, s: Store | Accumulate, lane: Expr) -> Store | Accumulate:
        """The statement of one result, scalars where they live."""

        def rule(n: Node) -> Node | None:
            if isinstance(n, (Load, Store, Accumulate)) and n.buffer.name in self.homes:
                return replace(n, buffer=self.homes[n.buffer.name], index=(Var(THREAD), lane))
            return None

        column = self.group * self.how.lanes + lane if self.how.lanes > 1 else self.group
        moved: Stmt = rewrite(substitute(s, {self.how.axis: column}), rule)  # type: ignore[assignment]
        return moved  # type: ignore[return-value]

    # -- statements that all threads come to

    def together(self, s: Stmt) -> Stmt:
        match s:
            case Alloc(buffer=b, body=body) if not b.shape:
                home = replace(b, shape=(self.how.threads, self.how.lanes), space=Space.THREAD)
                self.homes[b.name] = home
                return Alloc(home, self.together(body))
            case Block(stmts=stmts):
                return Block(tuple(self.together(t) for t in stmts))
            case Store(buffer=b) if b.name in self.homes:
                return self.by_threads(self.by_lanes(s))
            case Store():
                done = self.by_lanes(s)
                return self.by_threads(If(self.line.eq(0), done) if self.how.depth > 1 else done)
            case For():
                return self.sum(s)
        raise ScheduleError(f"{self.how}: a {type(s).__name__.lower()} beside the sums")

    def sum(self, s: For) -> Stmt:
        """A sum: by each line what belongs to it, then of all lines."""
        chain = outer_loops(s)
        leaf = chain[-1].body
        if not isinstance(leaf, Accumulate) or leaf.buffer.name not in self.homes:
            raise ScheduleError(f"{self.how}: a loop that is no sum")
        axes = [(n.axis, int(n.extent.value)) for n in chain]  # type: ignore[union-attr]
        count, depth = prod(n for _, n in axes), self.how.depth
        step, steps = f"{axes[0][0]}_step", -(-count // depth)
        at = Var(step) * depth + self.line if depth > 1 else Var(step)
        self.ranges[step] = (0.0, steps - 1.0)
        moved: Accumulate = substitute(leaf, unflattened(axes, at))  # type: ignore[assignment]
        body = self.by_lanes(moved)
        if count % depth:
            body = If(at < count, body)
        own = self.by_threads(For(step, index_const(steps), body))
        return own if depth == 1 else self.met(self.homes[leaf.buffer.name], leaf.op, own)

    def met(self, home: Buffer, op: ScalarOp, own: Stmt) -> Stmt:
        """Every line gets the sums of all of them: half of the lines add those of the other half
        until few are left."""
        how, other, lane = self.how, Var("line"), Var(LANE)
        shape = (how.lanes, how.depth, how.width)  # neighbouring threads have banks side by side
        shared = Buffer(f"lines{self.shared}", home.dtype, shape, space=Space.SHARED)
        self.shared += 1
        mine = (Var(THREAD), lane)
        write = Store(shared, (lane, self.line, self.side), Load(home, mine))
        parts: list[Stmt] = [own, self.by_threads(self.lanes(write)), Barrier()]
        left = how.depth
        while left > FEW_LINES:
            half = -(-left // 2)
            below = Load(shared, (lane, self.line + half, self.side))
            fold = self.lanes(Accumulate(shared, (lane, self.line, self.side), op, below))
            parts += [self.by_threads(If(self.line < left - half, fold)), Barrier()]
            left = half
        first = Store(home, mine, Load(shared, (lane, index_const(0), self.side)))
        rest = Accumulate(home, mine, op, Load(shared, (lane, other + 1, self.side)))
        others = For(other.name, index_const(left - 1), self.lanes(rest), baked=True)
        parts.append(self.by_threads(Block((self.lanes(first), others))))
        return Alloc(shared, Block(tuple(parts)))

    def lanes(self, s: Stmt) -> Stmt:
        return For(LANE, index_const(self.how.lanes), s, baked=True)
