"""A schedule is data: a tuple of frozen directives, each a checked Kernel -> Kernel rewrite.

A request that is not legal is a ScheduleError that says why. What a directive makes is verified: a
VerifyError
there is our own bug.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

from tilewright.errors import ScheduleError
from tilewright.loops.affine import Range, simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Arrived,
    Barrier,
    Box,
    Buffer,
    Combine,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Mma,
    Node,
    Settle,
    Stages,
    Stmt,
    Store,
    Tile,
    Var,
    Wait,
    Wgmma,
    children,
    index_const,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.ir import (
    Block as Sequence,
)
from tilewright.loops.locate import (
    MAX_SCRATCH_BYTES,
    accesses,
    axis_ranges,
    find_loop,
    offset,
    scratch_bytes,
)
from tilewright.loops.microtile import reads_columns, tile_form
from tilewright.loops.scalars import ScalarOp, identity
from tilewright.loops.verify import colliding_writes, shared_writes, verify


@dataclass(frozen=True)
class Merge:
    """for a in A: for b in B  ->  for a in A*B, where every access steps through both as through
    one."""

    outer: str
    inner: str

    def __call__(self, kernel: Kernel) -> Kernel:
        first = _loop(kernel, self.outer)
        second = first.body
        if not isinstance(second, For) or second.axis != self.inner:
            raise ScheduleError(f"{self}: the loops are not directly nested")
        a, b = _extent(first), _extent(second)
        env: dict[str, Expr] = {self.outer: Var(self.outer) // b, self.inner: Var(self.outer) % b}
        body = substitute(second.body, env)
        whole = For(self.outer, index_const(a * b), body, first.kind)  # type: ignore[arg-type]
        ranges = axis_ranges(kernel.body) | {self.outer: (0.0, float(a * b - 1))}
        for n in accesses(body):
            if self.outer in offset(n.buffer, n.index, ranges).nonlinear_axes():
                raise ScheduleError(f"{self}: {n.buffer.name} is not contiguous across the two")
        if _used_outside_indices(body, self.outer):
            raise ScheduleError(f"{self}: an axis is used by itself")
        return _replaced(kernel, first, whole)


@dataclass(frozen=True)
class Block:
    """Take `factor` iterations of a loop at a time, innermost: for a in E: S -> for a in
    ceil(E/f): S for f of them.

    Loops inside S stay outside the new inner loop, local buffers of S get one more dimension. The
    last block is
    shorter, or with `overlap` moved back so that it is whole: it then computes some elements twice.
    """

    axis: str
    factor: int
    overlap: bool = False

    def __call__(self, kernel: Kernel) -> Kernel:
        target = _loop(kernel, self.axis)
        extent, f = _extent(target), self.factor
        if f < 2 or (self.overlap and f > extent):
            raise ScheduleError(f"{self}: the extent is {extent}")
        if why := shared_writes(target):
            raise ScheduleError(f"{self}: {why}")
        if any(isinstance(n, Tile) for n in walk(target.body)):
            raise ScheduleError(f"{self}: there is a tile inside")
        if extent % f and self.overlap and _accumulates_outside(target.body):
            raise ScheduleError(f"{self}: elements would be accumulated twice")
        start: Expr = Var(self.axis) * f
        length: Expr = index_const(f)
        if extent % f and self.overlap:
            start = Apply(ScalarOp.MIN, (start, index_const(extent - f)))
        elif f > extent:
            length = index_const(extent)
        elif extent % f:
            length = Apply(ScalarOp.MIN, (length, index_const(extent) - start))
        inner = _unused(kernel, f"{self.axis}_i")
        body = _Distribute(
            self.axis, inner, start, length, f, extent % f == 0 or self.overlap
        ).statement(target.body)
        return _replaced(
            kernel, target, replace(target, extent=index_const(-(-extent // f)), body=body)
        )


def _accumulates_outside(body: Stmt) -> bool:
    """Whether there is a reduction into a buffer that lives longer than the statement."""
    local = {n.buffer.name for n in walk(body) if isinstance(n, Alloc)}
    return any(isinstance(n, Accumulate) and n.buffer.name not in local for n in walk(body))


class _Distribute:
    """Moves a loop into a statement, around each of its leaves."""

    def __init__(
        self, axis: str, inner: str, start: Expr, length: Expr, factor: int, baked: bool
    ) -> None:
        self.axis, self.inner, self.length, self.factor, self.baked = (
            axis,
            inner,
            length,
            factor,
            baked,
        )
        self.position = start + Var(inner)
        self.grown: dict[str, Buffer] = {}

    def statement(self, s: Stmt) -> Stmt:
        match s:
            case Sequence(stmts=stmts):
                return Sequence(tuple(self.statement(t) for t in stmts))
            case Alloc(buffer=b, body=body):
                self.grown[b.name] = replace(b, shape=(*b.shape, self.factor))
                return Alloc(self.grown[b.name], self.statement(body))
            case For(extent=extent, body=body):
                if self.axis in variables(extent):
                    raise ScheduleError(f"the extent of {s.axis} depends on {self.axis}")
                return replace(s, body=self.statement(body))
            case Store() | Accumulate() | If() | Tile():
                leaf = substitute(rewrite(s, self._grow), {self.axis: self.position})
                return For(self.inner, self.length, leaf, baked=self.baked)  # type: ignore[arg-type]
            case Barrier() | Combine() | Commit() | Wait() | Mma() | Stages() | Fetch():
                raise ScheduleError(f"the threads of a block meet inside the loop over {self.axis}")
            case Box() | Arrived() | Wgmma() | Settle():
                raise ScheduleError(f"the threads of a block meet inside the loop over {self.axis}")
            case _:
                assert_never(s)

    def _grow(self, n: Node) -> Node | None:
        if isinstance(n, (Load, Store, Accumulate)) and n.buffer.name in self.grown:
            return replace(n, buffer=self.grown[n.buffer.name], index=(*n.index, Var(self.inner)))
        return None


@dataclass(frozen=True)
class Swap:
    """for a: for b: S  ->  for b: for a: S, where the iterations of both are independent."""

    outer: str
    inner: str

    def __call__(self, kernel: Kernel) -> Kernel:
        first = _loop(kernel, self.outer)
        second = first.body
        if (
            not isinstance(second, For)
            or second.axis != self.inner
            or self.outer in variables(second.extent)
        ):
            raise ScheduleError(f"{self}: the loops are not directly nested")
        if why := shared_writes(first) or shared_writes(second):
            raise ScheduleError(f"{self}: {why}")
        return _replaced(kernel, first, replace(second, body=replace(first, body=second.body)))


@dataclass(frozen=True)
class Bind:
    """Run the iterations of an outermost loop as tasks."""

    axis: str
    kind: LoopKind = LoopKind.PARALLEL

    def __call__(self, kernel: Kernel) -> Kernel:
        target = _loop(kernel, self.axis)
        if self.kind is LoopKind.PARALLEL:
            if why := shared_writes(target) or colliding_writes(target):
                raise ScheduleError(f"{self}: {why}")
            if not _is_outermost(kernel, target):
                raise ScheduleError(
                    f"{self}: only a loop with nothing but parallel loops around it can be bound"
                )
        return _replaced(kernel, target, replace(target, kind=self.kind))


@dataclass(frozen=True)
class Together:
    """Take `count` iterations of a parallel loop before the parallel loop around it advances.

    What they read stays in the cache while the outer loop walks over the rest.
    """

    axis: str
    count: int

    def __call__(self, kernel: Kernel) -> Kernel:
        target = _loop(kernel, self.axis)
        inner = target.body
        if target.kind is not LoopKind.PARALLEL or not 0 < self.count < _extent(target):
            raise ScheduleError(f"{self}: no parallel loop with more iterations")
        if isinstance(inner, For) and inner.kind is LoopKind.PARALLEL:
            raise ScheduleError(f"{self}: there is a parallel loop inside")
        return _replaced(kernel, target, replace(target, together=self.count))


@dataclass(frozen=True)
class Bake:
    """Print the extent of a loop as a literal: for windows and other sizes that belong to the
    structure."""

    axis: str

    def __call__(self, kernel: Kernel) -> Kernel:
        target = _loop(kernel, self.axis)
        return _replaced(kernel, target, replace(target, baked=True))


@dataclass(frozen=True)
class Tensorize:
    """Compute a blocked reduction on register tiles; its meaning stays the loops it replaces."""

    columns: str
    rows: str = ""

    def __call__(self, kernel: Kernel) -> Kernel:
        found: list[Alloc] = [
            n for n in walk(kernel.body) if isinstance(n, Alloc) and self._matches(n)
        ]
        if len(found) != 1:
            raise ScheduleError(f"{self}: {len(found)} blocked reductions with these axes")
        old, body = found[0], _inside_allocs(found[0])
        assert isinstance(body, Sequence)
        start, steps, *rest = body.stmts
        ranges, width = axis_ranges(kernel.body), old.buffer.shape[-1]
        form = tile_form(steps, self.rows, self.columns, ranges, width)
        if form is None:
            raise ScheduleError(f"{self}: the operands are not stepped through evenly")
        if reads_columns(form) and not self._is_whole(steps, width):
            raise ScheduleError(f"{self}: the last block of columns is not whole")
        tile = Tile(
            old.buffer,
            self.rows,
            self.columns,
            tuple(_depth(steps, self._own)),
            Sequence((start, steps)),
        )
        stored = (_contiguous_last(r, self.rows, ranges) for r in rest)
        return _replaced(kernel, body, Sequence((tile, *stored)))

    @property
    def _own(self) -> frozenset[str]:
        return frozenset((self.rows, self.columns))

    def _matches(self, n: Alloc) -> bool:
        body = _inside_allocs(n)
        if (
            not isinstance(body, Sequence)
            or len(body.stmts) < 2
            or len(n.buffer.shape) != (2 if self.rows else 1)
        ):
            return False
        start, steps = _leaf(body.stmts[0]), _leaf(body.stmts[1])
        return (
            isinstance(start, Store)
            and start.buffer is n.buffer
            and isinstance(start.value, Const)
            and isinstance(steps, Accumulate)
            and steps.buffer is n.buffer
            and start.value == Const(identity(steps.op, n.buffer.dtype), n.buffer.dtype)
            and self._own - {""} <= variables(steps)
        )

    def _is_whole(self, steps: Stmt, width: int) -> bool:
        """Whether all columns of the tile are always there."""
        found = [n for n in walk(steps) if isinstance(n, For) and n.axis == self.columns]
        return all(n.extent == index_const(width) for n in found)


class Directive(Protocol):
    """A checked rewrite of a kernel; how it prints says what it does."""

    def __call__(self, kernel: Kernel) -> Kernel: ...


def schedule(kernel: Kernel, directives: Iterable[Directive]) -> Kernel:
    """The kernel after each directive in turn, verified each time; the directives are kept with
    it."""
    for d in directives:
        changed = d(kernel)
        if (scratch := scratch_bytes(changed.body)) > MAX_SCRATCH_BYTES:
            raise ScheduleError(
                f"{d}: {scratch:,} bytes of scratch; a task has {MAX_SCRATCH_BYTES:,}"
            )
        kernel = verify(replace(_simplified(changed), schedule=(*kernel.schedule, d)))
    return kernel


def _simplified(kernel: Kernel) -> Kernel:
    ranges = axis_ranges(kernel.body)

    def rule(n: Node) -> Node | None:
        if isinstance(n, (Store, Accumulate)):
            value = simplify_loads(n.value, ranges)
            return n if value is n.value else replace(n, value=value)
        return None

    return replace(kernel, body=rewrite(kernel.body, rule))  # type: ignore[arg-type]


def _unused(kernel: Kernel, name: str) -> str:
    """An axis name like `name` that no loop of the kernel has."""
    while find_loop(kernel, name) is not None:
        name += "i"
    return name


def _contiguous_last(s: Stmt, rows: str, ranges: Mapping[str, Range]) -> Stmt:
    """Loops over the elements of a tile that store rows side by side, the rows innermost."""
    match s:
        case For(axis=axis, body=For(body=Store() as store) as inner):
            at = offset(store.buffer, store.index, ranges)
            if (
                axis == rows
                and at.coefficient(rows) == 1 != at.coefficient(inner.axis)
                and rows not in variables(inner.extent)
            ):
                return replace(inner, body=replace(s, body=store))
    return s


def _inside_allocs(s: Stmt) -> Stmt:
    while isinstance(s, Alloc):
        s = s.body
    return s


def _leaf(s: Stmt) -> Stmt:
    while isinstance(s, For):
        s = s.body
    return s


def _depth(s: Stmt, own: frozenset[str]) -> list[str]:
    axes = []
    while isinstance(s, For):
        if s.axis not in own:
            axes.append(s.axis)
        s = s.body
    return axes


def _loop(kernel: Kernel, axis: str) -> For:
    found = find_loop(kernel, axis)
    if found is None:
        raise ScheduleError(f"{kernel.name} has no loop over {axis}")
    return found


def _extent(loop: For) -> int:
    if not isinstance(loop.extent, Const):
        raise ScheduleError(f"the extent of {loop.axis} is not fixed")
    return int(loop.extent.value)


def _replaced(kernel: Kernel, old: Stmt, new: Stmt) -> Kernel:
    def visit(s: Stmt) -> Stmt:
        if s is old:
            return new
        match s:
            case For() | If() | Alloc():
                return replace(s, body=visit(s.body))
            case Sequence(stmts=stmts):
                return Sequence(tuple(visit(t) for t in stmts))
            case _:
                return s

    return replace(kernel, body=visit(kernel.body))


def _is_outermost(kernel: Kernel, target: For) -> bool:
    body: Stmt = kernel.body
    while isinstance(body, For) and body is not target and body.kind is LoopKind.PARALLEL:
        body = body.body
    return body is target


def _used_outside_indices(node: Node, axis: str) -> bool:
    """Whether the axis counts as a value or in a condition, not only as a place."""
    if isinstance(node, (Load, Store, Accumulate)):
        inner: list[Node] = [node.value] if isinstance(node, (Store, Accumulate)) else []
        loads_of_loads = [i for i in node.index if any(isinstance(n, Load) for n in walk(i))]
        return any(_used_outside_indices(n, axis) for n in inner) or any(
            axis in variables(i) for i in loads_of_loads
        )
    if isinstance(node, Var):
        return node.name == axis
    return any(_used_outside_indices(c, axis) for c in children(node))
