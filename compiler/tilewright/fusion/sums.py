"""Reductions in the form that memory and threads suit.

Summed axes that a reshape merged are taken apart again, so that loops step through memory. Where
there are few results and much to sum, parts are summed first: how many depends on extents alone,
never on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from tilewright.fusion.contraction import ranges_of
from tilewright.fusion.inline import Program
from tilewright.fusion.renew import renewed
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import Apply, Const, Expr, Load, Var, substitute, walk
from tilewright.loops.locate import offset
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Reduction, Tensor, fresh_axis, sources

MIN_WORK = 1 << 15  # elements of a sum that is worth several tasks
MIN_TASKS = 8
LINE = 64  # results that lie side by side and are summed by one task
PARTS = (4, 128)  # the least and the most


def split_sums(program: Program) -> Program:
    """The program with its reductions in such a form, and everything else as it was."""
    done: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for t in program.order:
        current = renewed(t, done)
        if isinstance(current, Compute) and not program.on_tiles(t) and _is_sum(current):
            current = taken_apart(current)
            parts = _parts(current)
            if parts is not None:
                program.checked[parts.name] = program.checked.pop(t.name, ())
                order.append(parts)
                current = _whole(current, parts)
        done[t.name] = current
        order.append(current)
    program.order = order
    program.outputs = tuple(done[t.name] for t in program.outputs)
    program.consumers = {t.name: [] for t in order}
    for t in order:
        for s in sources(t):
            program.consumers[s.name].append(t)
    return program


def lies_across(t: Compute) -> bool:
    """Whether the results of a reduction lie side by side in its main operand, and what is summed
    for one of them does not."""
    form = _steps(t)
    if t.reduction is None or not form:
        return False
    return any(form[a] == 1 for a in t.axes) and not any(form[a] == 1 for a, _ in t.reduction.axes)


def taken_apart(t: Compute) -> Compute:
    """t with a summed axis for each dimension that the main operand has of it."""
    assert t.reduction is not None
    axes: list[tuple[str, int]] = []
    body = t.body
    for axis, extent in t.reduction.axes:
        edges = _edges(body, axis, extent)
        names = [fresh_axis("r") for _ in edges]
        sizes = [b // a for a, b in zip(edges, [*edges[1:], extent], strict=True)]
        position: Expr = Var(names[0])
        for name, edge in zip(names[1:], edges[1:], strict=True):
            position = position + Var(name) * edge
        body = substitute(body, {axis: position})  # type: ignore[assignment]
        axes += zip(names[::-1], sizes[::-1], strict=True)
    if len(axes) == len(t.reduction.axes):
        return t
    apart = replace(t, body=body, reduction=Reduction(t.reduction.op, tuple(axes)))
    return replace(apart, body=simplify_loads(apart.body, ranges_of(apart)))


def _is_sum(t: Compute) -> bool:
    return t.reduction is not None and not isinstance(t, WinogradCompute) and t.size > 0


def _edges(body: Expr, axis: str, extent: int) -> list[int]:
    """The steps of the axis at which a dimension that was merged into it advances, 1 first."""
    found: set[int] = set()
    for n in walk(body):
        match n:
            case Apply(op=ScalarOp.FLOORDIV | ScalarOp.MOD, args=(x, Const(value=d))):
                match x:
                    case Var(name=name) if name == axis:
                        found.add(int(d))
                    case Apply(op=ScalarOp.FLOORDIV, args=(Var(name=name), Const(value=e))):
                        found |= {int(e), int(e) * int(d)} if name == axis else set()
    edges = [1]
    for edge in sorted(found):
        if edges[-1] < edge < extent and extent % edge == 0 and edge % edges[-1] == 0:
            edges.append(edge)
    return edges


def _steps(t: Compute) -> Mapping[str, int]:
    """How far a step of each axis goes in the main operand."""
    loads = [n for n in walk(t.body) if isinstance(n, Load)]
    if not loads or t.reduction is None:
        return {}
    main = max(loads, key=lambda n: prod(n.buffer.shape))
    form = offset(main.buffer, main.index, ranges_of(t))
    return {a: abs(form.coefficient(a)) for a in (*t.axes, *(a for a, _ in t.reduction.axes))}


def _parts(t: Compute) -> Compute | None:
    """The sums of parts, where there is too little to do at a time otherwise."""
    assert t.reduction is not None
    summed = prod(n for _, n in t.reduction.axes)
    tasks = -(-t.size // LINE) if lies_across(t) else t.size
    steps = _steps(t)
    if tasks >= MIN_TASKS or t.size * summed < MIN_WORK or not steps or t.exact:
        return None
    axis, extent = max(t.reduction.axes, key=lambda x: steps[x[0]])
    count = next((n for n in range(min(PARTS[1], extent), PARTS[0] - 1, -1) if extent % n == 0), 0)
    if not count or summed == count:
        return None
    part, rest = fresh_axis("i"), fresh_axis("r")
    length = extent // count
    position: Expr = Var(part) * length + Var(rest) if length > 1 else Var(part)
    body: Expr = substitute(t.body, {axis: position})  # type: ignore[assignment]
    kept = [(rest, length) if a == axis else (a, n) for a, n in t.reduction.axes]
    reduction = Reduction(t.reduction.op, tuple((a, n) for a, n in kept if n > 1))
    parts = replace(
        t,
        name=f"{t.name}_parts",
        shape=(count, *t.shape),
        strides=None,
        axes=(part, *t.axes),
        body=body,
        reduction=reduction,
        channels_last=False,
    )
    return replace(parts, body=simplify_loads(parts.body, ranges_of(parts)))


def _whole(t: Compute, parts: Compute) -> Compute:
    """The same as t, from the sums of its parts."""
    assert t.reduction is not None
    axis = fresh_axis("r")
    body = Load(parts, (Var(axis), *(Var(a) for a in t.axes)))
    return replace(t, body=body, reduction=Reduction(t.reduction.op, ((axis, parts.shape[0]),)))
