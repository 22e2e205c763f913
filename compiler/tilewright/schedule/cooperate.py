"""Rows of reductions, each shared by some threads of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Barrier,
    Block,
    Buffer,
    Combine,
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
    variables,
    walk,
)
from tilewright.loops.locate import axis_ranges, outer_loops
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.vectors import by_vectors

THREAD = "thread"
UNBOUNDED = 1 << 40
Element = tuple[Expr, ...]


@dataclass(frozen=True)
class Cooperate:
    """Share each row of a reduction among `width` of the `threads` of a block.

    The outer loops become blocks; each of a row's threads takes every width-th group of `lanes`
    elements, and sums are combined. What is kept of a row stays in registers where each thread
    uses its own elements alone, in shared memory otherwise.
    """

    threads: int
    width: int
    lanes: int = 1

    def __call__(self, kernel: Kernel) -> Kernel:
        if self.width != self.threads and self.width > WARP:
            raise ScheduleError(f"{self}: several rows of a block have a warp each at most")
        return _Cooperation(self, kernel).run()


@dataclass
class _Cooperation:
    how: Cooperate
    kernel: Kernel
    homes: dict[str, Buffer] = field(default_factory=dict)  # where local buffers live

    def run(self) -> Kernel:
        loops = outer_loops(self.kernel.body)
        inner = loops[-1].body if loops else self.kernel.body
        self.rows = [(n.axis, _fixed(n)) for n in loops]
        self.thread: Expr = Var(THREAD)
        self.lane = self.thread if self.is_block else self.thread % self.how.width
        self.read_again = _read_again(self.kernel)
        self.place(inner)
        body = self.bound(self.together(inner))
        ranges = axis_ranges(body)

        def rule(n: Node) -> Node | None:
            if isinstance(n, (Store, Accumulate)):
                value = simplify_loads(n.value, ranges)
                return n if value is n.value else replace(n, value=value)
            return None

        return replace(self.kernel, body=rewrite(body, rule))  # type: ignore[arg-type]

    @property
    def is_block(self) -> bool:
        """Whether a row has all the threads of a block."""
        return self.how.width == self.how.threads

    # -- rows

    def bound(self, body: Stmt) -> Stmt:
        """The body within the loops over blocks."""
        if self.is_block:
            for axis, n in reversed(self.rows):
                body = For(axis, index_const(n), body, LoopKind.BLOCK)
            return body
        count = prod(n for _, n in self.rows)
        return For("block", index_const(-(-count // self.teams)), body, LoopKind.BLOCK)

    @property
    def teams(self) -> int:
        return self.how.threads // self.how.width

    def in_row(self, s: Stmt) -> Stmt:
        """A statement of one thread, where its row is: nothing beyond the last row."""
        if self.is_block or not self.rows:
            return s
        count = prod(n for _, n in self.rows)
        row: Expr = Var("block") * self.teams + self.thread // self.how.width
        moved: Stmt = substitute(s, unflattened(self.rows, row))  # type: ignore[assignment]
        return moved if count % self.teams == 0 else If(row < count, moved)

    def by_threads(self, s: Stmt) -> Stmt:
        return For(THREAD, index_const(self.how.threads), self.in_row(s), LoopKind.THREAD)

    # -- local buffers

    def place(self, s: Stmt) -> None:
        """Decides where the local buffers live."""
        for n in walk(s):
            if isinstance(n, Alloc) and n.buffer.space is Space.LOCAL:
                self.homes[n.buffer.name] = self.home(n.buffer, s)

    def home(self, b: Buffer, s: Stmt) -> Buffer:
        if not b.shape:
            return replace(b, shape=(self.how.threads,), space=Space.THREAD)
        if all(self.is_own(b, nest) for nest in _nests(s)):
            steps = self.steps(prod(b.shape))
            return replace(b, shape=(self.how.threads, steps, self.how.lanes), space=Space.THREAD)
        if not self.is_block:
            raise ScheduleError(f"{self.how}: {b.name} is shared by the threads of a row")
        return replace(b, space=Space.SHARED)

    def is_own(self, b: Buffer, nest: Stmt) -> bool:
        """Whether a nest uses the buffer element by element, in the order of its loops."""
        axes, leaf = _spread(nest)
        used = [n for n in walk(leaf) if _uses(n, b)]
        here = tuple(Var(a) for a, _ in axes)
        whole = tuple(n for _, n in axes) == b.shape
        return not used or (whole and all(n.index == here for n in used))  # type: ignore[union-attr]

    def steps(self, count: int) -> int:
        return -(-count // (self.how.width * self.how.lanes))

    # -- statements that all threads come to

    def together(self, s: Stmt) -> Stmt:
        match s:
            case Alloc(buffer=b, body=body):
                return Alloc(self.homes[b.name], self.together(body))
            case Block(stmts=stmts):
                return Block(tuple(self.together(t) for t in stmts))
            case Store() | Accumulate() if s.buffer.space is Space.LOCAL:
                return self.by_threads(self.at_home(s, None))
            case Store():
                return self.by_threads(If(self.lane.eq(0), self.at_home(s, None)))
            case For():
                return self.nest(s)
        raise ScheduleError(f"{self.how}: a {type(s).__name__.lower()} in the row")

    def nest(self, s: For) -> Stmt:
        axes, leaf = _spread(s)
        if not axes:
            raise ScheduleError(f"{self.how}: a loop whose iterations are not independent")
        own = {n.buffer.name for n in walk(s) if isinstance(n, Alloc)}
        written = [n.buffer for n in walk(leaf) if isinstance(n, (Store, Accumulate))]
        outside = [b for b in written if b.name not in own]
        scalars = [b for b in outside if b.space is Space.LOCAL and not b.shape]
        if scalars and not isinstance(leaf, Accumulate):
            raise ScheduleError(f"{self.how}: several things happen to an element")
        done: list[Stmt] = [self.by_threads(self.elements(axes, leaf))]
        if isinstance(leaf, Accumulate) and scalars:
            if leaf.buffer.dtype is DType.BOOL:
                raise ScheduleError(f"{self.how}: truth values are not combined")
            done.append(Combine(self.homes[leaf.buffer.name], leaf.op, self.how.width))
        if any(self.is_common(b) for b in outside):
            if not self.is_block:
                raise ScheduleError(f"{self.how}: a row is read again by other threads")
            done.append(Barrier())
        return done[0] if len(done) == 1 else Block(tuple(done))

    def is_common(self, b: Buffer) -> bool:
        """Whether what one thread writes here, others read."""
        return self.homes.get(b.name, b).space is Space.SHARED or b.name in self.read_again

    def elements(self, axes: Sequence[tuple[str, int]], leaf: Stmt) -> Stmt:
        """What one thread does with its elements of a row."""
        count, lanes, width = prod(n for _, n in axes), self.how.lanes, self.how.width
        vector = lanes if count % lanes == 0 else 1
        in_registers = any(len(b.shape) == 3 for b in self.used(leaf))
        if vector != lanes and in_registers:
            raise ScheduleError(f"{self.how}: {count} elements are no whole vectors")
        step, part = f"{axes[0][0]}_step", f"{axes[0][0]}_lane"
        group: Expr = Var(step) * width + self.lane
        body = self.moved(axes, leaf, group * vector + Var(part) if vector > 1 else group, part)
        if vector > 1:
            loop = For(part, index_const(vector), body, baked=True)
            steps = -(-count // (width * vector))
            body = by_vectors(loop, self.ranges(steps, step, part, vector))
            if body is loop and not in_registers:  # else neighbouring threads read side by side
                vector, body = 1, self.moved(axes, leaf, group, part)
        steps = -(-count // (width * vector))
        if count % (width * vector):
            body = If(group < count // vector, body)
        if steps == 1:
            return substitute(body, {step: index_const(0)})  # type: ignore[return-value]
        return For(step, index_const(steps), body, baked=in_registers)

    def moved(self, axes: Sequence[tuple[str, int]], leaf: Stmt, element: Expr, part: str) -> Stmt:
        """The statement of an element of a row, by the element's number."""
        step = Var(f"{axes[0][0]}_step")
        own = Var(part) if part in variables(element) else index_const(0)
        return substitute(self.at_home(leaf, (step, own)), unflattened(axes, element))  # type: ignore[return-value]

    def ranges(
        self, steps: int, step: str, part: str, vector: int
    ) -> Mapping[str, tuple[float, float]]:
        rows = {a: (0.0, n - 1.0) for a, n in [*self.rows, ("block", UNBOUNDED)]}
        threads = {THREAD: (0.0, self.how.threads - 1.0)}
        return {**rows, **threads, step: (0.0, steps - 1.0), part: (0.0, vector - 1.0)}

    def used(self, s: Stmt) -> list[Buffer]:
        """The homes of the local buffers that a statement uses."""
        names = {n.buffer.name for n in walk(s) if isinstance(n, (Load, Store, Accumulate))}
        return [b for name, b in self.homes.items() if name in names]

    def at_home(self, s: Stmt, place: Element | None) -> Stmt:
        """The statement with local buffers where they live; `place` is a thread's own element."""

        def rule(n: Node) -> Node | None:
            if not isinstance(n, (Load, Store, Accumulate)) or n.buffer.name not in self.homes:
                return None
            home = self.homes[n.buffer.name]
            index: Element = n.index
            if home.space is Space.THREAD:
                index = (self.thread,) if len(home.shape) == 1 else (self.thread, *(place or ()))
            return replace(n, buffer=home, index=index)

        return rewrite(s, rule)  # type: ignore[return-value]


def _read_again(kernel: Kernel) -> frozenset[str]:
    """Results that the kernel also reads."""
    loads = (n for n in walk(kernel.body) if isinstance(n, Load))
    return frozenset(n.buffer.name for n in loads if n.buffer.name in kernel.outputs)


def _fixed(loop: For) -> int:
    if not isinstance(loop.extent, Const):
        raise ScheduleError(f"the extent of {loop.axis} is not fixed")
    return int(loop.extent.value)


def _uses(n: Node, b: Buffer) -> bool:
    return isinstance(n, (Load, Store, Accumulate)) and n.buffer.name == b.name


def _nests(s: Stmt) -> list[Stmt]:
    """The loop nests and single statements of a row, in order."""
    match s:
        case Alloc(body=body):
            return _nests(body)
        case Block(stmts=stmts):
            return [n for t in stmts for n in _nests(t)]
    return [s]


def _spread(s: Stmt) -> tuple[list[tuple[str, int]], Stmt]:
    """The loops of a nest that threads can share, and what stays inside of them: a reduction into a
    row keeps its summed axes."""
    loops: list[For] = []
    while isinstance(s, For) and isinstance(s.extent, Const):
        loops.append(s)
        s = s.body
    kept = loops
    if isinstance(s, Accumulate) and s.index:
        own = frozenset[str]().union(*map(variables, s.index))
        kept = [n for n in loops if n.axis in own]
        for n in reversed([n for n in loops if n.axis not in own]):
            s = replace(n, body=s)
    return [(n.axis, _fixed(n)) for n in kept], s


def unflattened(axes: Sequence[tuple[str, int]], position: Expr) -> dict[str, Expr]:
    """Each axis as part of the position in all of them together, the last one fastest."""
    env: dict[str, Expr] = {}
    for k, (axis, n) in enumerate(reversed(axes)):
        last = k == len(axes) - 1
        env[axis] = position if last else position % n
        if not last:
            position = position // n
    return env
