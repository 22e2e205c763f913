"""A loop cut where the conditions inside of it change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.affine import Linear, linear
from tilewright.loops.ir import (
    Apply,
    Block,
    Const,
    Expr,
    For,
    Kernel,
    Node,
    Select,
    Stmt,
    Store,
    Var,
    dtype_of,
    index_const,
    rewrite,
    substitute,
    walk,
)
from tilewright.loops.locate import find_loop
from tilewright.loops.scalars import ScalarOp

MOST_PARTS = 8
HOLDS = {
    ScalarOp.LT: lambda d: d < 0,
    ScalarOp.LE: lambda d: d <= 0,
    ScalarOp.GT: lambda d: d > 0,
    ScalarOp.GE: lambda d: d >= 0,
    ScalarOp.EQ: lambda d: d == 0,
}


@dataclass(frozen=True)
class Partition:
    """Take the iterations of an innermost loop in parts, in each of which the choices that depend
    on the axis alone are made once: what comes from several places is copied part by part."""

    axis: str

    def __call__(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.axis)
        if loop is None or not isinstance(loop.extent, Const) or not isinstance(loop.body, Store):
            raise ScheduleError(f"{self}: no loop of a fixed extent around one store")
        extent, store = int(loop.extent.value), loop.body
        found = {p for n in walk(store.value) for p in self._changes(n) if 0 < p < extent}
        if not 0 < len(found) < MOST_PARTS:
            raise ScheduleError(f"{self}: {len(found) + 1} parts")
        edges = [0, *sorted(found), extent]
        parts = [self._part(store, k, first, end) for k, (first, end) in enumerate(pairwise(edges))]
        whole = Block(tuple(parts))
        body = rewrite(kernel.body, lambda n: whole if n is loop else None)
        return replace(kernel, body=cast(Stmt, body))

    def _part(self, store: Store, k: int, first: int, end: int) -> For:
        decided = rewrite(store.value, lambda n: self._decided(n, first))
        axis = f"{self.axis}_{k}"
        body = substitute(replace(store, value=cast(Expr, decided)), {self.axis: Var(axis) + first})
        return For(axis, index_const(end - first), cast(Stmt, body))

    def _decided(self, n: Node, at: int) -> Expr | None:
        """What a condition, and a choice by it, is from this iteration on to the next change."""
        match n:
            case Select(condition=Const(value=holds), then=then, otherwise=otherwise):
                return then if holds else otherwise
            case Apply(op=ScalarOp.AND, args=(Const(value=known), other)):
                return other if known else n.args[0]
            case Apply(op=ScalarOp.AND, args=(other, Const(value=known))):
                return other if known else n.args[1]
        decided = self._holds(n, at)
        return None if decided is None else Const(decided, DType.BOOL)

    def _changes(self, n: Node) -> list[int]:
        """The iterations at which a condition changes."""
        form = self._difference(n)
        if form is None:
            return []
        zero = -form.constant * form.coefficient(self.axis)
        return [p for p in (zero, zero + 1) if self._holds(n, p) != self._holds(n, p - 1)]

    def _holds(self, n: Node, at: int) -> bool | None:
        """Whether a condition holds in an iteration, if it depends on nothing else."""
        form = self._difference(n)
        if form is None or not isinstance(n, Apply):
            return None
        return bool(HOLDS[n.op](form.coefficient(self.axis) * at + form.constant))

    def _difference(self, n: Node) -> Linear | None:
        """What a comparison compares with zero, if that is the axis, shifted or turned round."""
        if not isinstance(n, Apply) or n.op not in HOLDS or dtype_of(n.args[0]) is not DType.I64:
            return None
        form = linear(n.args[0] - n.args[1], {})
        alone = len(form.terms) == 1 and abs(form.coefficient(self.axis)) == 1
        return form if alone else None
