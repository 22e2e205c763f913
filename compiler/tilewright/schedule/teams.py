"""Loop nests written by hand: the threads of a block share what their tasks do one after the
other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import linear
from tilewright.loops.ir import (
    Accumulate,
    Barrier,
    Block,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import axis_ranges, outer_loops
from tilewright.schedule.cooperate import THREAD, unflattened


@dataclass(frozen=True)
class Teams:
    """Run each task as a block of `threads`.

    Iterations that write elements of their own are shared among the threads. Where places come
    from data, every thread goes through all updates and makes those of its own elements, so that
    updates of one element keep their order.
    """

    threads: int

    def __call__(self, kernel: Kernel) -> Kernel:
        tasks: list[For] = []
        inner = kernel.body
        while isinstance(inner, For) and inner.kind is LoopKind.PARALLEL:
            tasks.append(inner)
            inner = inner.body
        body = _Team(self, kernel).together(inner)
        for n in reversed(tasks):
            body = replace(n, body=body, kind=LoopKind.BLOCK)
        if not tasks:
            body = For("block", index_const(1), body, LoopKind.BLOCK)
        return replace(kernel, body=body)


class _Team:
    def __init__(self, how: Teams, kernel: Kernel) -> None:
        self.how, self.ranges = how, axis_ranges(kernel.body)

    def together(self, s: Stmt) -> Stmt:
        """A statement that all threads come to."""
        match s:
            case Block(stmts=stmts):
                parts: list[Stmt] = []
                for t in stmts:
                    parts += [Barrier()] if parts else []
                    parts.append(self.together(t))
                return Block(tuple(parts))
            case If(condition=c, body=body) if not any(isinstance(n, Load) for n in walk(c)):
                return If(c, self.together(body))
            case For():
                return self.nest(s)
        raise ScheduleError(f"{self.how}: a {type(s).__name__.lower()} beside the loops")

    def nest(self, s: For) -> Stmt:
        chain = outer_loops(s)
        leaf = chain[-1].body
        fixed = all(isinstance(n.extent, Const) and n.kind is LoopKind.SERIAL for n in chain)
        if not fixed or not isinstance(leaf, (Store, Accumulate)):
            raise ScheduleError(f"{self.how}: loops of other extents or around more than one step")
        if leaf.buffer.space is not Space.GLOBAL or _reads(leaf, leaf.buffer.name):
            raise ScheduleError(f"{self.how}: what is written is read again")
        own = self.independent(leaf)
        shared = [n for n in chain if n.axis in own]
        serial = [n for n in chain if n.axis not in own]
        body = self.shared(shared, serial, leaf) if shared else self.owned(chain, leaf)
        return For(THREAD, index_const(self.how.threads), body, LoopKind.THREAD)

    def independent(self, leaf: Store | Accumulate) -> frozenset[str]:
        """The axes whose iterations write different elements."""
        found = set()
        for i in leaf.index:
            form = linear(i, self.ranges)
            others = frozenset[str]().union(*(variables(j) for j in leaf.index if j is not i))
            if len(form.terms) == 1 and isinstance(form.terms[0][0], Var):
                axis = form.terms[0][0].name
                found |= {axis} if axis not in others else set()
        return frozenset(found)

    def shared(self, shared: list[For], serial: list[For], leaf: Store | Accumulate) -> Stmt:
        """Each thread has some iterations of the shared loops, neighbours side by side."""
        axes = [(n.axis, int(n.extent.value)) for n in shared]  # type: ignore[union-attr]
        count, threads = prod(n for _, n in axes), self.how.threads
        steps = -(-count // threads)
        step = f"{axes[-1][0]}_step"
        at: Expr = Var(step) * threads + Var(THREAD) if steps > 1 else Var(THREAD)
        body: Stmt = substitute(leaf, unflattened(axes, at))  # type: ignore[assignment]
        for n in reversed(serial):
            body = replace(n, body=body)
        if count % threads:
            body = If(at < count, body)
        return For(step, index_const(steps), body) if steps > 1 else body

    def owned(self, chain: list[For], leaf: Store | Accumulate) -> Stmt:
        """Each thread makes the updates of its own elements."""
        place: Expr = index_const(0)
        for i, n in zip(leaf.index, leaf.buffer.shape, strict=True):
            place = place * n + i
        body: Stmt = If((place % self.how.threads).eq(Var(THREAD)), leaf)
        for loop in reversed(chain):
            body = replace(loop, body=body)
        return body


def _reads(leaf: Store | Accumulate, name: str) -> bool:
    return any(isinstance(n, Load) and n.buffer.name == name for n in walk(leaf))
