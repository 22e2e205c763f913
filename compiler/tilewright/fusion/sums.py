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
from tilewright.loops.ir import (
    Apply,
    Const,
    Expr,
    Load,
    Node,
    Var,
    dtype_of,
    rewrite,
    substitute,
    variables,
    walk,
)
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
                parts, wide = widened(parts)
                order += [*wide, parts]
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
    form = steps_of(t)
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
    """Whether t is a sum or product; extremes have a pass of their own."""
    if t.reduction is None or isinstance(t, WinogradCompute):
        return False
    return t.size > 0 and t.reduction.op in (ScalarOp.ADD, ScalarOp.MUL)


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


def steps_of(t: Compute) -> Mapping[str, int]:
    """How far a step of each axis goes in the main operand."""
    loads = [n for n in walk(t.body) if isinstance(n, Load)]
    if not loads or t.reduction is None:
        return {}
    main = max(loads, key=lambda n: prod(n.buffer.shape))
    form = offset(main.buffer, main.index, ranges_of(t))
    return {a: abs(form.coefficient(a)) for a in (*t.axes, *(a for a, _ in t.reduction.axes))}


def _parts(t: Compute) -> Compute | None:
    """The sums of parts as [part, results..., neighbours], where there is too little to do at a
    time otherwise, or where few neighbours are summed and lines of memory lie in between."""
    assert t.reduction is not None
    summed, steps = prod(n for _, n in t.reduction.axes), steps_of(t)
    if t.size * summed < MIN_WORK or not steps or t.exact or _is_product(t):
        return None
    near, width = neighbours(t, steps)
    across = lies_across(t) or near
    tasks = -(-t.size * width // LINE) if across else t.size
    if tasks >= MIN_TASKS and not near:
        return None
    axis, extent = max(t.reduction.axes, key=lambda x: steps[x[0]])
    count = _count(extent) if tasks < MIN_TASKS and axis != near else 1
    if count * width in (1, summed):
        return None
    part, rest = fresh_axis("i"), fresh_axis("r")
    length = extent // count
    env: dict[str, Expr] = {axis: Var(part) * length + Var(rest)} if axis != near else {}
    kept = [(rest, length) if a == axis else (a, n) for a, n in t.reduction.axes if a != near]
    parts = replace(
        t,
        name=f"{t.name}_parts",
        shape=(count, *t.shape, width),
        strides=None,
        axes=(part, *t.axes, near or fresh_axis("i")),
        body=substitute(t.body, env),  # type: ignore[arg-type]
        reduction=Reduction(t.reduction.op, tuple(kept)),
        channels_last=False,
    )
    return replace(parts, body=simplify_loads(parts.body, ranges_of(parts)))


def _is_product(t: Compute) -> bool:
    """Whether t sums products of two tensors: kernels for these cut the results, not the sums."""
    match t.body:
        case Apply(op=ScalarOp.MUL, args=(Load(buffer=a), Load(buffer=b))):
            return a.name != b.name
    return False


def _count(extent: int) -> int:
    """How many equal parts an axis is taken in."""
    most, least = min(PARTS[1], extent), PARTS[0]
    return next((n for n in range(most, least - 1, -1) if extent % n == 0), 1)


def neighbours(t: Compute, steps: Mapping[str, int]) -> tuple[str, int]:
    """The summed axis, and its extent, along which few elements lie side by side, those of the
    next result after them; no name if there is none."""
    assert t.reduction is not None
    for axis, n in t.reduction.axes:
        few = steps[axis] == 1 and 1 < n < LINE and len(t.reduction.axes) > 1
        if few and any(steps[a] == n for a in t.axes):
            return axis, n
    return "", 1


def widened(parts: Compute) -> tuple[Compute, list[Compute]]:
    """The parts, and tensors with an element for each neighbour for what they read once for
    several."""
    if parts.shape[-1] == 1:
        return parts, []
    made: list[Compute] = []
    own = frozenset(parts.axes[1:-1])
    shape = parts.shape[1:]

    def rule(n: Node) -> Node | None:
        if not isinstance(n, Load) or not n.index or not variables(n) <= own:
            return None
        axes = tuple(fresh_axis("i") for _ in shape)
        env: dict[str, Expr] = dict(zip(parts.axes[1:], map(Var, axes), strict=True))
        body: Expr = substitute(n, env)  # type: ignore[assignment]
        name = f"{parts.name}_wide{len(made)}"
        made.append(
            Compute(name, dtype_of(n), shape, axes=axes, body=body, op=parts.op, node=parts.node)
        )
        return Load(made[-1], tuple(Var(a) for a in parts.axes[1:]))

    body: Expr = rewrite(parts.body, rule)  # type: ignore[assignment]
    return replace(parts, body=body), made


def _whole(t: Compute, parts: Compute) -> Compute:
    """The same as t, from the sums of its parts."""
    assert t.reduction is not None
    sizes = (parts.shape[0], parts.shape[-1])
    first, last = fresh_axis("r"), fresh_axis("r")
    body = Load(parts, (Var(first), *(Var(a) for a in t.axes), Var(last)))
    axes = tuple(zip((first, last), sizes, strict=True))
    return replace(t, body=body, reduction=Reduction(t.reduction.op, axes))
