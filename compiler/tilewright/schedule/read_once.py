"""Rows that a kernel reads more than once, kept where they are at hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from tilewright.errors import ScheduleError
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
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import always_read, outer_loops

Shape = tuple[int, ...]
Place = tuple[Load, Shape]  # what a nest reads, its axes by position, and their extents


@dataclass(frozen=True)
class ReadOnce:
    """Copy what several loops of a row read, first of all, if it has at most `most` elements.

    Only what each loop reads element by element, always, and nobody writes.
    """

    most: int

    def __call__(self, kernel: Kernel) -> Kernel:
        loops = outer_loops(kernel.body)
        nests = [n for n in _statements(kernel.body) if isinstance(n, For)]
        seen = Counter(p for n in nests for p in set(_places(n, kernel)))
        again = [p for p, count in seen.items() if count > 1 and prod(p[1]) <= self.most]
        if not again:
            raise ScheduleError(f"{self}: no short row is read again")
        body = loops[-1].body if loops else kernel.body
        for k, place in enumerate(again):
            body = _kept(body, place, Buffer(f"row{k}_kept", place[0].buffer.dtype, place[1]))
        for n in reversed(loops):
            body = replace(n, body=body)
        return replace(kernel, body=body)


def _statements(s: Stmt, outer: bool = True) -> list[Stmt]:
    """The loop nests and single statements of a row, in order."""
    match s:
        case For(body=body) if outer:
            return _statements(body)
        case Alloc(body=body):
            return _statements(body, False)
        case Block(stmts=stmts):
            return [n for t in stmts for n in _statements(t, False)]
    return [s]


def _axes(nest: For) -> list[For]:
    """The loops of a nest whose iterations use an element of a row each; none where that is not
    sure."""
    chain = outer_loops(nest)
    leaf = chain[-1].body
    simple = isinstance(leaf, Store) or (isinstance(leaf, Accumulate) and not leaf.index)
    return chain if simple and all(isinstance(n.extent, Const) for n in chain) else []


def _positions(chain: list[For]) -> dict[str, Expr]:
    return {n.axis: Var(f"at{k}") for k, n in enumerate(chain)}


def _places(nest: For, kernel: Kernel) -> list[Place]:
    chain = _axes(nest)
    if not chain:
        return []
    shape = tuple(int(n.extent.value) for n in chain)  # type: ignore[union-attr]
    own = frozenset(n.axis for n in chain)
    found = [
        n
        for n in always_read(chain[-1].body)
        if n.buffer.space is Space.GLOBAL
        and n.buffer.name not in kernel.outputs
        and own <= variables(n)
        and not any(isinstance(m, Load) for i in n.index for m in walk(i))
    ]
    return [(substitute(n, _positions(chain)), shape) for n in found]  # type: ignore[misc]


def _kept(s: Stmt, place: Place, b: Buffer) -> Stmt:
    """The statements of a row that read the buffer, which is filled first."""
    buffer = replace(b, space=Space.LOCAL)
    load, shape = place
    axes = [f"{b.name}_{k}" for k in range(len(shape))]
    index = tuple(Var(a) for a in axes)
    value = substitute(load, {f"at{k}": v for k, v in enumerate(index)})
    fill: Stmt = Store(buffer, index, value)  # type: ignore[arg-type]
    for axis, n in zip(reversed(axes), reversed(shape), strict=True):
        fill = For(axis, index_const(n), fill)
    return Alloc(buffer, Block((fill, _reading(s, place, buffer))))


def _reading(s: Stmt, place: Place, b: Buffer) -> Stmt:
    match s:
        case Alloc(body=body):
            return replace(s, body=_reading(body, place, b))
        case Block(stmts=stmts):
            return Block(tuple(_reading(t, place, b) for t in stmts))
        case For():
            chain = _axes(s)
            if tuple(n.extent.value for n in chain) != place[1]:  # type: ignore[union-attr]
                return s
            back: dict[str, Expr] = {f"at{k}": Var(n.axis) for k, n in enumerate(chain)}
            load, index = substitute(place[0], back), tuple(back.values())
            return rewrite(s, lambda n: Load(b, index) if n == load else None)  # type: ignore[return-value]
    return s
