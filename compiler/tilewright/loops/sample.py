"""Parts of a loop nest by the interpreter, as far as time allows, and how much its rounding
matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tilewright.loops.affine import Range, interval
from tilewright.loops.interpret import run_statement
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Const,
    For,
    Kernel,
    Node,
    Stmt,
    children,
    dtype_of,
    rewrite,
    variables,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import colliding_writes, shared_writes

EXACT = frozenset(
    (
        *(ScalarOp.MIN, ScalarOp.MAX, ScalarOp.NEG, ScalarOp.ABS, ScalarOp.SIGN),
        *(ScalarOp.FLOOR, ScalarOp.CEIL, ScalarOp.RINT, ScalarOp.TRUNC, ScalarOp.REM, ScalarOp.MOD),
    )
)
"""Functions whose results on floats are not rounded."""


def independent_loops(body: Stmt) -> tuple[list[For], Stmt]:
    """The outer loops whose iterations write elements of their own, outermost first, and what is
    inside of them."""
    loops: list[For] = []
    while isinstance(body, For) and isinstance(body.extent, Const):
        if shared_writes(body) or colliding_writes(body):
            break
        loops.append(body)
        body = body.body
    return loops, body


def work(s: Stmt, ranges: Mapping[str, Range] | None = None) -> float:
    """Expressions that the interpreter evaluates in a statement, at most."""
    known = ranges or {}
    match s:
        case For(axis=axis, extent=extent, body=body):
            count = max(interval(extent, known)[1], 0.0)
            return 1 + count * (1 + work(body, {**known, axis: (0.0, max(count - 1, 0.0))}))
    below = children(s)
    inner = sum(work(c, known) for c in below if isinstance(c, Stmt))
    return inner + sum(1.0 for c in below if not isinstance(c, Stmt) for _ in walk(c))


def choose(kernel: Kernel, most: float, random: np.random.Generator) -> list[dict[str, int]]:
    """Iterations of the outer loops that take at most so many evaluations in all; none if one
    takes more already. All of them, in order, if there is room."""
    loops, inside = independent_loops(kernel.body)
    extents = [int(n.extent.value) for n in loops if isinstance(n.extent, Const)]
    total, each = math.prod(extents), work(inside, _ranges(loops))
    count = min(total, int(most / max(each, 1.0)))
    places = range(total) if count == total else random.choice(total, count, replace=False)
    found = []
    for place in places:
        at = np.unravel_index(int(place), extents) if extents else ()
        found.append({n.axis: int(i) for n, i in zip(loops, at, strict=True)})
    return found


def _ranges(loops: list[For]) -> dict[str, Range]:
    return {n.axis: (0.0, float(n.extent.value) - 1) for n in loops if isinstance(n.extent, Const)}


def interpret_iterations(
    kernel: Kernel, iterations: list[dict[str, int]], arrays: Mapping[str, np.ndarray]
) -> None:
    """Runs those iterations of the kernel's outer loops, in place."""
    _, inside = independent_loops(kernel.body)
    with np.errstate(all="ignore"):
        for axes in iterations:
            run_statement(inside, axes, dict(arrays))


def summed_terms(kernel: Kernel) -> int:
    """The most values that one element is a sum (or another reduction) of."""
    return round(_terms(kernel.body, {}, {}))


def _terms(s: Stmt, loops: Mapping[str, float], ranges: Mapping[str, Range]) -> float:
    match s:
        case For(axis=axis, extent=extent, body=body):
            count = max(interval(extent, ranges)[1], 1.0)
            return _terms(body, {**loops, axis: count}, {**ranges, axis: (0.0, count - 1)})
        case Accumulate(index=index):
            own = frozenset[str]().union(*map(variables, index))
            return math.prod(n for a, n in loops.items() if a not in own)
        case Alloc(body=body):
            return _terms(body, {}, ranges)
    return max((_terms(c, loops, ranges) for c in children(s) if isinstance(c, Stmt)), default=1.0)


def shaken(kernel: Kernel, random: np.random.Generator, ulps: float) -> Kernel:
    """The kernel with every rounded function on floats wrong by so many units in the last place,
    up or down: how far its results move says how much rounding inside of it matters."""

    def rule(n: Node) -> Node | None:
        if not isinstance(n, Apply) or n.op in EXACT or n.op.rule == "bool":
            return None
        dtype = dtype_of(n)
        if not dtype.compute.is_float:
            return None
        unit = float(np.finfo(dtype.compute.numpy).eps) * ulps
        factor = 1 + unit if random.integers(2) else 1 - unit
        return Apply(ScalarOp.MUL, (n, Const(factor, dtype.compute)))

    return replace(kernel, body=rewrite(kernel.body, rule))  # type: ignore[arg-type]
