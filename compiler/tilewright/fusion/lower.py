"""Groups to loop nests: the plain nest that means what the group means, without any schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from tilewright.fusion.groups import Group
from tilewright.fusion.inline import Program
from tilewright.fusion.winograd import WinogradCompute
from tilewright.fusion.winograd_loops import winograd_loops
from tilewright.loops.affine import simplify_loads
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
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    rewrite,
    strides_of,
    substitute,
    walk,
)
from tilewright.loops.locate import MAX_SCRATCH_BYTES, axis_ranges
from tilewright.loops.scalars import identity
from tilewright.ops.tensor import Compute, Tensor

LOCAL_BYTES = 1 << 16  # the largest row kept in a task's scratch; longer ones go through memory


@dataclass(frozen=True)
class Lowered:
    """A kernel and the tensors its parameters stand for, in order."""

    kernel: Kernel
    tensors: tuple[Tensor, ...]
    group: Group


def lower(group: Group, program: Program) -> Lowered:
    """The loop nest of a group."""
    if group.nest is not None:
        return _lower_nest(group, program)
    if group.winograd is not None:
        return _lower_winograd(group, group.winograd)
    return _Lowering(group, program).run()


def loop(axis: str, extent: int, body: Stmt) -> Stmt:
    """A loop with a constant extent; none for a single iteration."""
    if extent == 1:
        return substitute(body, {axis: index_const(0)})  # type: ignore[return-value]
    return For(axis, index_const(extent), body)


def flat(parts: Sequence[Stmt]) -> Stmt:
    """Statements one after the other, without blocks inside blocks."""
    stmts = [s for p in parts for s in (p.stmts if isinstance(p, Block) else (p,))]
    return stmts[0] if len(stmts) == 1 else Block(tuple(stmts))


class _Lowering:
    def __init__(self, group: Group, program: Program) -> None:
        self.group = group
        inside = {m.name for m in group.members}
        outputs = {t.name for t in program.outputs}
        self.stored = [
            m
            for m in group.members
            if m.name in outputs or any(c.name not in inside for c in program.consumers[m.name])
        ]
        self.row_axes: list[tuple[str, int]] = self._row_axes()
        self.locals: dict[str, Buffer] = {}
        self.scratch = MAX_SCRATCH_BYTES
        for m in group.members:
            self._place(m)

    def _place(self, m: Compute) -> None:
        """Give a member that nobody outside reads a local buffer, or memory after all if a row is
        too long or scratch is used up."""
        if m in self.stored:
            return
        inner = tuple(m.shape[k] for k in self._kept(m))
        size = m.dtype.itemsize * prod(inner)
        if size > min(LOCAL_BYTES, self.scratch):
            self.stored.append(m)
        else:
            self.scratch -= size
            self.locals[m.name] = Buffer(m.name, m.dtype, inner, space=Space.LOCAL)

    def _kept(self, m: Compute) -> list[int]:
        """The dimensions of a member's local buffer: those that the rows do not walk."""
        rows = self.group.rows[m.name]
        return [
            k
            for k, (a, n) in enumerate(zip(m.axes, m.shape, strict=True))
            if a not in rows and n > 1
        ]

    def _row_axes(self) -> list[tuple[str, int]]:
        """Names and extents of the row loops, in the order in which the main result lies in
        memory."""
        main = self.group.members[-1]
        rows = self.group.rows[main.name]
        if not any(m.reduction for m in self.group.members):
            rows = main.axes
            self.group.rows[main.name] = rows
        extents = dict(zip(main.axes, main.shape, strict=True))
        strides = dict(zip(main.axes, strides_of(main), strict=True))
        last = self._tile_positions()
        order = sorted(
            range(len(rows)), key=lambda k: (last.index(k) if k in last else -1, -strides[rows[k]])
        )
        self.positions = order
        return [(f"row{k}", extents[rows[k]]) for k in order]

    def _tile_positions(self) -> list[int]:
        """The rows and columns of a contraction's tile: its innermost loops."""
        c = self.group.contraction
        if c is None:
            return []
        axes = self.group.members[0].axes
        return [axes.index(a) for a in (c.rows, c.columns) if a is not None]

    def run(self) -> Lowered:
        body = flat([self._member(m) for m in self.group.members])
        for m in reversed(self.group.members):
            if m.name in self.locals:
                body = Alloc(self.locals[m.name], body)
        for axis, extent in reversed(self.row_axes):
            body = loop(axis, extent, body)
        ranges = axis_ranges(body)
        body = rewrite(body, lambda n: _canonical(n, ranges))  # type: ignore[assignment]
        return finish(body, self.stored, self.group)

    def _member(self, m: Compute) -> Stmt:
        """The statement that computes one member within a row."""
        names = {a: Var(f"row{k}") for k, a in enumerate(self.group.rows[m.name])}
        env: dict[str, Expr] = {
            a: names.get(a, index_const(0) if n == 1 else Var(a))
            for a, n in zip(m.axes, m.shape, strict=True)
        }
        body = substitute(m.body, env)
        inner = [(a, n) for a, n in zip(m.axes, m.shape, strict=True) if a not in names and n != 1]
        target, index = self._target(m, env)
        if m.reduction is None:
            statement: Stmt = Store(target, index, self._local_reads(body))  # type: ignore[arg-type]
        else:
            statement = self._reduce(m, body, target, index)  # type: ignore[arg-type]
        strides = dict(zip(m.axes, strides_of(m), strict=True))
        for axis, extent in sorted(inner, key=lambda x: strides[x[0]]):
            statement = loop(axis, extent, statement)
        return statement

    def _target(self, m: Compute, env: dict[str, Expr]) -> tuple[Buffer, tuple[Expr, ...]]:
        if m.name not in self.locals:
            return m, tuple(env[a] for a in m.axes)
        return self.locals[m.name], tuple(env[m.axes[k]] for k in self._kept(m))

    def _local_reads(self, body: Expr) -> Expr:
        """Reads of members that live in scratch, redirected there."""
        members = {m.name: m for m in self.group.members}

        def rule(n: object) -> Expr | None:
            if isinstance(n, Load) and n.buffer.name in self.locals:
                m = members[n.buffer.name]
                return Load(self.locals[m.name], tuple(n.index[k] for k in self._kept(m)))
            return None

        return rewrite(body, rule)  # type: ignore[arg-type,return-value]

    def _reduce(self, m: Compute, body: Expr, target: Buffer, index: tuple[Expr, ...]) -> Stmt:
        assert m.reduction is not None
        op = m.reduction.op
        in_place = target.space is Space.LOCAL
        acc = target if in_place else Buffer(f"sum_{m.name}", m.dtype, (), space=Space.LOCAL)
        at = index if in_place else ()
        step: Stmt = Accumulate(acc, at, op, self._local_reads(body))
        order = self.group.contraction.depth if self.group.contraction else _reduction_order(m)
        extents = dict(m.reduction.axes)
        for axis in reversed(order):
            step = loop(axis, extents[axis], step)
        start = Store(acc, at, Const(identity(op, m.dtype), m.dtype))
        if in_place:
            return Block((start, step))
        return Alloc(acc, Block((start, step, Store(target, index, Load(acc, ())))))


def _reduction_order(m: Compute) -> list[str]:
    """Reduced axes, the one that is contiguous in the largest operand innermost."""
    assert m.reduction is not None
    loads = [n for n in walk(m.body) if isinstance(n, Load)]
    if not loads:
        return [a for a, _ in m.reduction.axes]
    main = max(loads, key=lambda n: sum(n.buffer.shape))
    stride = {a: 0 for a, _ in m.reduction.axes}
    for i, s in zip(main.index, strides_of(main.buffer), strict=True):
        for n in walk(i):
            if isinstance(n, Var) and n.name in stride:
                stride[n.name] = max(stride[n.name], s)
    return sorted(stride, key=lambda a: -stride[a])


def _canonical(n: object, ranges: dict[str, tuple[float, float]]) -> Stmt | None:
    if isinstance(n, (Store, Accumulate)):
        value = simplify_loads(n.value, ranges)
        return n if value is n.value else replace(n, value=value)
    return None


def _lower_winograd(group: Group, t: WinogradCompute) -> Lowered:
    stored = group.members[-1]

    def finish_one(value: Expr, *index: Expr) -> Stmt:
        def rule(n: object) -> Expr | None:
            return value if isinstance(n, Load) and n.buffer.name == t.name else None

        if stored is t:
            return Store(t, index, value)
        body = substitute(stored.body, dict(zip(stored.axes, index, strict=True)))
        return Store(stored, index, rewrite(body, rule))  # type: ignore[arg-type]

    height, width = t.shape[2:]
    body = winograd_loops(t.placed, t.shape[0], (height, width), finish_one)
    ranges = axis_ranges(body)
    body = rewrite(body, lambda n: _canonical(n, ranges))  # type: ignore[assignment]
    return finish(body, [stored], group)


def _lower_nest(group: Group, program: Program) -> Lowered:
    """A hand-written nest reads its tensors in their final form: constants that were packed."""
    assert group.nest is not None
    final = {t.name: t for t in program.order}

    def rule(n: object) -> Load | None:
        if not isinstance(n, Load) or final.get(n.buffer.name, n.buffer) is n.buffer:
            return None
        return Load(final[n.buffer.name], n.index)

    body: Stmt = rewrite(group.nest.body, rule)  # type: ignore[arg-type,assignment]
    return finish(body, list(group.nest.outputs), group)


def finish(body: Stmt, stored: Sequence[Tensor], group: Group) -> Lowered:
    """The kernel of a body: tensors become buffers under canonical names, inputs first."""
    out = {t.name for t in stored}
    tensors: dict[str, Tensor] = {}
    for n in walk(body):
        if isinstance(n, (Load, Store, Accumulate)) and isinstance(n.buffer, Tensor):
            tensors.setdefault(n.buffer.name, n.buffer)
    inputs = [t for name, t in tensors.items() if name not in out]
    params = [*inputs, *(t for t in stored)]
    buffers = {
        t.name: Buffer(f"p{k}", t.dtype, t.shape, t.strides, values=t.values)
        for k, t in enumerate(params)
    }

    def rule(n: object) -> object | None:
        if isinstance(n, Load) and n.buffer.name in buffers:
            return Load(buffers[n.buffer.name], n.index)
        if isinstance(n, Store) and n.buffer.name in buffers:
            return Store(buffers[n.buffer.name], n.index, n.value)
        if isinstance(n, Accumulate) and n.buffer.name in buffers:
            return Accumulate(buffers[n.buffer.name], n.index, n.op, n.value)
        return None

    renamed = rewrite(body, rule)  # type: ignore[arg-type]
    kernel = Kernel(
        group.label,
        tuple(buffers[t.name] for t in params),
        renamed,  # type: ignore[arg-type]
        outputs=frozenset(buffers[t.name].name for t in stored),
    )
    return Lowered(kernel, tuple(params), group)
