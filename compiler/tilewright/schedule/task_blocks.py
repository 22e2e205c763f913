"""Tasks of hand-written nests as blocks of threads, which share the iterations of inner loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import Linear, interval, linear
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
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
    Tile,
    Var,
    index_const,
    rewrite,
    substitute,
    walk,
)
from tilewright.loops.locate import accesses, axis_ranges, outer_loops
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.cooperate import THREAD, unflattened

Around = For | If


@dataclass(frozen=True)
class TaskBlocks:
    """Run each task in a block of `threads`, which share what is independent in it.

    Loops whose iterations depend on each other stay loops of the block; scratch of a task becomes
    shared memory. Where places come from data, every thread goes through all updates and makes
    those of its own elements, so that updates of one element keep their order. All threads meet
    after each nest.
    """

    threads: int

    def __call__(self, kernel: Kernel) -> Kernel:
        loops = [n for n in outer_loops(kernel.body) if n.kind is LoopKind.PARALLEL]
        inner = loops[-1].body if loops else kernel.body
        tasks = _Tasks(self, axis_ranges(kernel.body))
        body = tasks.statement(inner)
        if tasks.widest < 2:
            raise ScheduleError(f"{self}: nothing in a task is independent")
        for n in reversed(loops):
            body = replace(n, body=body, kind=LoopKind.BLOCK, together=0)
        return replace(kernel, body=body)


def widest_nest(kernel: Kernel) -> int:
    """The most iterations of a task that threads could share; 0 if there are none."""
    loops = [n for n in outer_loops(kernel.body) if n.kind is LoopKind.PARALLEL]
    return widest_of(loops[-1].body if loops else kernel.body, axis_ranges(kernel.body))


def widest_of(s: Stmt, ranges: dict[str, tuple[float, float]]) -> int:
    """The same of one statement."""
    tasks = _Tasks(TaskBlocks(1), ranges)
    try:
        tasks.statement(s)
    except ScheduleError:
        return 0
    return tasks.widest


@dataclass
class _Tasks:
    how: TaskBlocks
    ranges: dict[str, tuple[float, float]]
    homes: dict[str, Buffer] = field(default_factory=dict)
    widest: int = 0

    def statement(self, s: Stmt) -> Stmt:
        """A statement that all threads of a block come to."""
        match s:
            case _ if self.is_lonely(s):
                return self.shared_out(s, ())
            case For() if update := self.update_in(s):
                return self.divided(s, update)
            case Alloc(buffer=b, body=body):
                if not b.shape:
                    raise ScheduleError(f"{self.how}: {b.name} is one number of a whole task")
                self.homes[b.name] = replace(b, space=Space.SHARED)
                return Alloc(self.homes[b.name], self.statement(body))
            case Block(stmts=stmts):
                return _sequence([self.statement(t) for t in self.runs(stmts)])
            case For() if self.is_narrow(s) or not self.is_shared(s):
                return replace(s, body=self.statement(s.body))
            case For() | Tile():
                return _sequence(list(self.nests(s, ())))
            case If(condition=condition, body=body):
                return If(self.at_home(condition), self.statement(body))  # type: ignore[arg-type]
        raise ScheduleError(f"{self.how}: a {type(s).__name__.lower()} in a task")

    def nests(self, s: Stmt, around: tuple[Around, ...]) -> Iterator[Stmt]:
        """One loop over threads for each innermost statement, with all loops and guards around."""
        match s:
            case For() if apart := self.apart_in(s):
                chain = outer_loops(s)
                leaf = chain[-1].body
                for n in reversed([n for n in chain if n not in apart]):
                    leaf = replace(n, body=leaf)
                yield self.shared_out(leaf, (*around, *apart))
            case For(body=body) if self.is_independent(s):
                yield from self.nests(body, (*around, s))
            case If(body=body) if not _changes(s):
                yield from self.nests(body, (*around, s))
            case Block(stmts=stmts) if not _is_straight(s):
                for t in stmts:
                    yield from self.nests(t, around)
            case Tile():
                yield from self.nests(_columns(s), around)
            case _:
                yield self.shared_out(s, around)

    def shared_out(self, leaf: Stmt, around: tuple[Around, ...]) -> Stmt:
        """Each thread takes every so many of the iterations, then all meet."""
        loops = [n for n in around if isinstance(n, For)]
        extents = [(n.axis, int(self.top(n))) for n in loops]
        sizes = [(axis, n) for axis, n in extents if n > 1]
        single: dict[str, Expr] = {axis: index_const(0) for axis, n in extents if n <= 1}
        count = prod(n for _, n in sizes)
        self.widest = max(self.widest, count)
        steps = -(-count // self.how.threads)
        step = f"{THREAD}_step"
        element: Expr = Var(THREAD)
        if steps > 1:
            element = Var(step) * self.how.threads + Var(THREAD)
        body: Stmt = self.at_home(leaf)  # type: ignore[assignment]
        for n in reversed(around):
            condition = n.condition if isinstance(n, If) else self.reached(n)
            if condition is not None:
                body = If(self.at_home(condition), body)  # type: ignore[arg-type]
        place = Var(THREAD) % count if count < self.how.threads else element
        body = substitute(body, unflattened(sizes, place) | single)  # type: ignore[assignment]
        if not sizes:
            element = Var(THREAD)
            body = If(element.eq(0), body)
        elif count % self.how.threads:
            body = If(element < count, body)
        if steps > 1:
            body = For(step, index_const(steps), body)
        threads = For(THREAD, index_const(self.how.threads), body, LoopKind.THREAD)
        return Block((threads, Barrier()))

    def divided(self, s: For, update: Store | Accumulate) -> Stmt:
        """Each thread goes through all updates and makes those of its own elements."""
        place: Expr = index_const(0)
        for i, n in zip(update.index, update.buffer.shape, strict=True):
            place = place * n + i
        self.widest = max(self.widest, prod(update.buffer.shape))
        body: Stmt = If((place % self.how.threads).eq(Var(THREAD)), update)
        for loop in reversed(outer_loops(s)):
            body = replace(loop, body=body)
        home: Stmt = self.at_home(body)  # type: ignore[assignment]
        threads = For(THREAD, index_const(self.how.threads), home, LoopKind.THREAD)
        return Block((threads, Barrier()))

    def top(self, loop: For) -> float:
        """The most iterations that a loop has."""
        return interval(loop.extent, self.ranges)[1]

    def reached(self, loop: For) -> Expr | None:
        """Whether an iteration takes place, where that is not sure."""
        if isinstance(loop.extent, Const):
            return None
        least = isinstance(loop.extent, Apply) and loop.extent.op is ScalarOp.MIN
        bounds = loop.extent.args if least else (loop.extent,)  # type: ignore[union-attr]
        found: Expr = Var(loop.axis) - bounds[0] < 0
        for bound in bounds[1:]:
            found = found & (Var(loop.axis) - bound < 0)
        return found

    def at_home(self, n: Node) -> Node:
        def rule(n: Node) -> Node | None:
            if isinstance(n, (Load, Store, Accumulate)) and n.buffer.name in self.homes:
                return replace(n, buffer=self.homes[n.buffer.name])
            return None

        return rewrite(n, rule)

    # -- which loops may be shared

    def is_shared(self, s: For) -> bool:
        """Whether threads may take the iterations of the loop, or of those nested in it."""
        return self.is_independent(s) or bool(self.apart_in(s))

    def is_narrow(self, s: For) -> bool:
        """Whether there is more to share within one iteration than in all of them side by side."""
        if self.top(s) >= WARP:
            return False
        if self.top(s) <= 1 and any(isinstance(n, Alloc) for n in walk(s.body)):
            return True  # whose arrays would be those of a single thread
        beside = _Tasks(TaskBlocks(1), self.ranges)
        list(beside.nests(s, ()))
        return beside.widest < widest_of(s.body, self.ranges)

    def runs(self, stmts: Sequence[Stmt]) -> Iterator[Stmt]:
        """The statements, those for one thread that follow each other as one."""
        for lonely, run in groupby(stmts, self.is_lonely):
            together = tuple(run)
            yield from (Block(together),) if lonely else together

    def is_lonely(self, s: Stmt) -> bool:
        """Whether there is nothing to share."""
        loops = (n for n in walk(s) if isinstance(n, For) and self.top(n) > 1)
        tiles = any(isinstance(n, (Tile, Alloc)) for n in walk(s))
        if tiles or (isinstance(s, For) and self.update_in(s)):
            return False
        return not any(self.is_independent(n) or self.apart_in(n) for n in loops)

    def update_in(self, s: For) -> Store | Accumulate | None:
        """The only statement in loops, if data says which element it writes and it reads nothing
        of what they write; None where some iterations are independent of each other."""
        chain = outer_loops(s)
        update = chain[-1].body
        if not isinstance(update, (Store, Accumulate)) or self.is_shared(s):
            return None
        by_data = any(isinstance(n, Load) for i in update.index for n in walk(i))
        loads = (n for n in walk(update) if isinstance(n, Load))
        reads = any(n.buffer.name == update.buffer.name for n in loads)
        return update if by_data and not reads else None

    def apart_in(self, s: For) -> list[For]:
        """Of perfectly nested loops those whose iterations use elements of their own, whatever the
        order of the others; none where they surround more than a straight line."""
        chain = outer_loops(s)
        names = {n.axis for n in chain}
        if not _is_straight(chain[-1].body):
            return []
        found: list[For] = []
        for n in chain:  # those that were found tell elements apart for the next ones
            others = names - {n.axis} - {m.axis for m in found}
            if isinstance(n.extent, Const) and self.is_independent(n, others):
                found.append(n)
        return found if any(self.top(n) > 1 for n in found) else []

    def is_independent(self, loop: For, others: Set[str] = frozenset()) -> bool:
        """Whether each iteration uses elements of its own of whatever the loop writes, wherever
        the `others` are."""
        if loop.kind is LoopKind.PARALLEL or self.top(loop) <= 1:
            return True
        inner = {n.axis for n in walk(loop.body) if isinstance(n, For)} | others
        own = {n.buffer.name for n in walk(loop.body) if isinstance(n, Alloc)}
        used = accesses(loop.body)
        written = {n.buffer.name for n in used if not isinstance(n, Load)} - own
        for name in written:
            places = [n.index for n in used if n.buffer.name == name]
            if not self.is_apart(places, loop.axis, inner):
                return False
        return True

    def is_apart(self, places: Sequence[tuple[Expr, ...]], axis: str, inner: Set[str]) -> bool:
        """Whether one dimension tells the iterations apart, whoever goes there."""
        for dimension in zip(*places, strict=True):
            own = [self.own_part(linear(i, self.ranges), axis, inner) for i in dimension]
            spans = [interval(i, self.ranges) for i in dimension]
            pairs = combinations(zip(own, spans, strict=True), 2)
            if all(own) and all(a == b or _are_disjoint(s, t) for (a, s), (b, t) in pairs):
                return True
        return False

    def own_part(self, form: Linear, axis: str, inner: Set[str]) -> Linear | None:
        """The form without inner axes, if these do not reach another iteration's elements."""
        step = abs(form.coefficient(axis))
        if not step or axis in form.nonlinear_axes() or inner & form.nonlinear_axes():
            return None
        within = [(a, c) for a, c in form.terms if isinstance(a, Var) and a.name in inner]
        reach = [(self.ranges[a.name][1], c) for a, c in within]  # type: ignore[union-attr]
        low, high = sum(min(n * c, 0) for n, c in reach), sum(max(n * c, 0) for n, c in reach)
        if not _inside(low, high, form.constant % step, step):
            return None
        rest = tuple(t for t in form.terms if t not in within)
        return Linear(rest, form.constant - form.constant % step)


def _is_straight(s: Stmt) -> bool:
    """Whether there is neither a loop nor a choice."""
    parts = s.stmts if isinstance(s, Block) else (s,)
    return all(isinstance(t, (Store, Accumulate)) for t in parts)


def _changes(s: If) -> bool:
    """Whether the body writes what the condition reads."""
    read = {n.buffer.name for n in walk(s.condition) if isinstance(n, Load)}
    return any(n.buffer.name in read for n in accesses(s.body) if not isinstance(n, Load))


def _inside(low: float, high: float, at: int, step: int) -> bool:
    """Whether what lies around `at` stays between two multiples of a step."""
    return at + low >= 0 and at + high < step


def _are_disjoint(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[1] < b[0] or b[1] < a[0]


def _sequence(stmts: list[Stmt]) -> Stmt:
    flat = [t for s in stmts for t in (s.stmts if isinstance(s, Block) else (s,))]
    return Block(tuple(flat))


def _columns(s: Tile) -> Stmt:
    """The tile column by column: the sums of all rows in registers, then stored."""
    assert isinstance(s.meaning, Block)
    zero, steps = s.meaning.stmts
    around, deep = outer_loops(zero), outer_loops(steps)
    start, step = around[-1].body, deep[-1].body
    if not isinstance(start, Store) or not isinstance(step, Accumulate):
        raise ScheduleError("a tile that is no plain sum of products")
    by_axis = {n.axis: n for n in around}
    rows, columns = by_axis[s.rows], by_axis[s.columns]
    assert isinstance(rows.extent, Const)
    sums = Buffer(f"{s.acc.name}_sums", s.acc.dtype, (int(rows.extent.value),), space=Space.LOCAL)
    place = (Var(s.rows),)
    depth = [n for n in deep if n.axis in s.depth]
    add: Stmt = replace(rows, body=Accumulate(sums, place, step.op, step.value), baked=True)
    for n in reversed(depth):
        add = replace(n, body=add)
    clear = replace(rows, body=Store(sums, place, start.value), baked=True)
    put = replace(rows, body=Store(start.buffer, start.index, Load(sums, place)), baked=True)
    return replace(columns, body=Alloc(sums, Block((clear, add, put))))
