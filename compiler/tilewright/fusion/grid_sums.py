"""Reductions for machines of many blocks of threads: where there are few results and much to
combine, parts are combined first, then what came out of the parts.

How many parts there are depends on extents alone, so results repeat to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tilewright.fusion.contraction import find_contraction, ranges_of
from tilewright.fusion.grid_products import Cut, product_cuts, product_of
from tilewright.fusion.inline import Program, label
from tilewright.fusion.renew import renewed
from tilewright.fusion.sums import lies_across, neighbours, steps_of, taken_apart, widened
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import Const, Expr, Load, Select, Var, index_const, substitute
from tilewright.loops.scalars import identity
from tilewright.ops.tensor import Compute, Reduction, Tensor, footprint, fresh_axis, sources

BLOCKS = 512  # about four to a multiprocessor of a large machine
ENOUGH = 1 << 16  # elements that one block combines sooner than another kernel starts
PART = 1 << 13  # elements that make a part
LINE = 128  # results side by side that a block has
ALIGNED = 16  # elements: parts begin where vectors may
WHOLE = 64  # the least length of a part with a remainder is a multiple of this


def split_for_grid(program: Program) -> Program:
    """The program with such reductions in two steps, and everything else as it was."""
    done: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for t in program.order:
        current = renewed(t, done)
        if isinstance(current, Compute) and (product := product_of(current)) is not None:
            cuts, why = product_cuts(product)
            if why:
                program.decisions.append(f"{label(current)} {why}")
            if cuts:
                parts = _divided(program, current, cuts)
                order.append(parts)
                current = _whole(current, parts, cuts, "")
        elif isinstance(current, Compute) and not program.on_tiles(t) and _may_split(current):
            current = taken_apart(current)
            near = _neighbours(current)
            cuts = _cuts(current, near)
            if cuts or near:
                program.checked[f"{t.name}_parts"] = program.checked.pop(t.name, ())
                parts, wide = widened(_parts(current, cuts, near))
                order += [*wide, parts]
                current = _whole(current, parts, cuts, near)
        done[t.name] = current
        order.append(current)
    program.order = order
    program.outputs = tuple(done[t.name] for t in program.outputs)
    program.consumers = {t.name: [] for t in order}
    for t in order:
        for s in sources(t):
            program.consumers[s.name].append(t)
    return program


def _may_split(t: Compute) -> bool:
    sums = t.reduction is not None and t.size > 0
    return sums and not t.exact and not isinstance(t, WinogradCompute)


def _neighbours(t: Compute) -> str:
    """The summed axis along which few elements lie side by side, and after them those of the next
    result: they are results of their own at first, so that whole lines are read."""
    assert t.reduction is not None
    steps = steps_of(t)
    if not steps or t.size * prod(n for _, n in t.reduction.axes) < ENOUGH:
        return ""
    return neighbours(t, steps)[0]


def _cuts(t: Compute, near: str) -> list[Cut]:
    """Axes whose parts become blocks, outermost in memory first; none where there are blocks
    enough."""
    assert t.reduction is not None
    steps, summed = steps_of(t), prod(n for _, n in t.reduction.axes)
    if not steps:
        return []
    results = t.size * dict(t.reduction.axes).get(near, 1)
    blocks = -(-results // LINE) if near or lies_across(t) else t.size
    each = t.size * summed // blocks
    wanted = min(BLOCKS // blocks, each // PART) if each >= ENOUGH else 0
    cuts: list[Cut] = []
    for axis, extent in sorted(t.reduction.axes, key=lambda x: -steps[x[0]]):
        if wanted < 2:
            break
        if extent > 1 and axis != near:
            cuts.append(_cut(axis, extent, wanted))
            wanted //= cuts[-1].count
    return cuts if prod(c.count for c in cuts) > 1 else []


def _divided(program: Program, t: Compute, cuts: list[Cut]) -> Compute:
    """The parts of a product: products themselves, on tiles if t is."""
    program.checked[f"{t.name}_parts"] = program.checked.pop(t.name, ())
    parts = _parts(t, cuts, "", first=True)
    if program.contractions.pop(t.name, None) is not None:
        found = find_contraction(parts)
        assert found is not None, "parts of a sum of products are sums of products"
        program.contractions[parts.name] = found
    return parts


def _cut(axis: str, extent: int, wanted: int) -> Cut:
    """In about so many parts, of equal length if there is such a number of them."""
    if extent <= wanted:
        return Cut(axis, extent, extent, 1)
    equal = next((n for n in range(wanted, wanted // 2, -1) if extent % n == 0), 0)
    if equal:
        return Cut(axis, extent, equal, extent // equal)
    length = -(-extent // wanted)
    if length > WHOLE:
        length = -(-length // WHOLE) * WHOLE
    return Cut(axis, extent, -(-extent // length), length)


def _parts(t: Compute, cuts: list[Cut], near: str, first: bool = False) -> Compute:
    """What comes of the parts, as [part..., result..., neighbour] where results lie side by side
    in memory or parts shall come `first`, and as [result..., part..., 1] otherwise."""
    assert t.reduction is not None
    by_axis = {c.axis: c for c in cuts}
    axes: list[tuple[str, int]] = []
    kept: list[tuple[str, int]] = []
    env: dict[str, Expr] = {}
    body: Expr = t.body
    last = (fresh_axis("i"), 1)
    for axis, extent in t.reduction.axes:
        c = by_axis.get(axis)
        if axis == near:
            last = (axis, extent)
        elif c is None:
            kept.append((axis, extent))
        else:
            part, rest = fresh_axis("i"), fresh_axis("r")
            axes.append((part, c.count))
            env[axis] = Var(part) * c.length + Var(rest) if c.length > 1 else Var(part)
            kept += [(rest, c.length)] if c.length > 1 else []
            if c.count * c.length > extent:
                nothing = Const(identity(t.reduction.op, t.dtype), t.dtype)
                body = Select(Var(axis) < extent, body, nothing)
    own = list(zip(t.axes, t.shape, strict=True))
    first = first or bool(near) or lies_across(t)
    placed = [*axes, *own, last] if first else [*own, *axes, last]
    made = replace(
        t,
        name=f"{t.name}_parts",
        shape=tuple(n for _, n in placed),
        strides=_strides(t, len(axes)) if first and not near else None,
        axes=tuple(a for a, _ in placed),
        body=substitute(body, env),  # type: ignore[arg-type]
        reduction=Reduction(t.reduction.op, tuple(kept)),
        channels_last=False,
    )
    return replace(made, body=simplify_loads(made.body, ranges_of(made)))


def _strides(t: Compute, parts: int) -> tuple[int, ...] | None:
    """Of one part after the other, each as t lies in memory."""
    if t.strides is None or parts != 1:
        return None
    return (-(-footprint(t) // ALIGNED) * ALIGNED, *t.strides, 1)


def _whole(t: Compute, parts: Compute, cuts: list[Cut], near: str) -> Compute:
    """The same as t, from what comes of its parts."""
    assert t.reduction is not None
    first = parts.axes[len(cuts) : -1] == t.axes
    names = [fresh_axis("r") for _ in (*cuts, near)]
    at, here = [Var(n) for n in names[:-1]], [Var(a) for a in t.axes]
    index = (*at, *here, Var(names[-1])) if first else (*here, *at, Var(names[-1]))
    sizes = (*(c.count for c in cuts), parts.shape[-1])
    summed = list(zip(names, sizes, strict=True))
    alone: dict[str, Expr] = {a: index_const(0) for a, n in summed if n == 1}
    axes = tuple((a, n) for a, n in summed if n > 1)
    body = substitute(Load(parts, index), alone)
    return replace(t, body=body, reduction=Reduction(t.reduction.op, axes))  # type: ignore[arg-type]
