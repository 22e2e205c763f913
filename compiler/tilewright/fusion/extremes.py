"""The least and the greatest of many elements: lane by lane and part by part, then of those.

Parts and vectors may overlap, since an element that is looked at twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from tilewright.fusion.contraction import address, ranges_of
from tilewright.fusion.inline import Program
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import Expr, Load, Operand, Var, substitute, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum
from tilewright.ops.tensor import Compute, Tensor, compute, sources

VECTORS = 2  # of lanes that are kept apart
LINE = 8  # vectors that a contiguous axis should have
MAX_PARTS = 64
PART = 1 << 14  # elements that make a part
FEW = 256  # elements for which one loop does as well


def split_extremes(program: Program, lanes: Mapping[int, int]) -> Program:
    """The program with every extreme of a whole tensor taken in steps. `lanes`: vector length by
    bits of an element."""
    order: list[Tensor] = []
    for t in program.order:
        steps = _steps(t, lanes) if isinstance(t, Compute) else []
        order += steps or [t]
    program.order = order
    program.consumers = {t.name: [] for t in order}
    for t in order:
        for s in sources(t):
            program.consumers[s.name].append(t)
    return program


def _steps(t: Compute, lanes: Mapping[int, int]) -> list[Compute]:
    """What takes the place of t, itself under its name at the end; nothing if t stays."""
    if t.reduction is None or t.reduction.op not in (ScalarOp.MIN, ScalarOp.MAX) or t.size != 1:
        return []
    one = lanes.get(t.dtype.bits, 0)
    if not one or _count(t) < FEW or (found := _contiguous(t, LINE * one)) is None:
        return []
    whole, along = found
    length = _extents(whole)[along]
    if length < one:
        return []
    width = VECTORS * one if length >= VECTORS * one else one
    parts = _partial(whole, along, width)
    steps = [parts]
    if parts.shape[0] > 1:
        op = t.reduction.op
        lane = compute((width,), lambda k, p: parts[p, k], reduce=op, over=parts.shape[:1])
        steps.append(replace(lane, op=t.op, node=t.node, inside=t.inside))
    last = steps[-1]
    index: tuple[Operand, ...] = (Var(along),) if last.rank == 1 else (0, Var(along))
    over = replace(t.reduction, axes=((along, width),))
    return [*steps, replace(t, body=last[index], reduction=over)]


def _extents(t: Compute) -> dict[str, int]:
    assert t.reduction is not None
    return dict(t.reduction.axes)


def _count(t: Compute) -> int:
    return prod(_extents(t).values())


def _main(t: Compute) -> Load:
    """The read of the largest operand."""
    loads = [n for n in walk(t.body) if isinstance(n, Load)]
    return max(loads, key=lambda n: prod(n.buffer.shape))


def _contiguous(t: Compute, enough: int) -> tuple[Compute, str] | None:
    """The axis along which the elements of the largest operand lie side by side; shorter than
    `enough`, it takes in those next to it."""
    form, extents = address(t, _main(t)), _extents(t)
    fitting = [a for a in extents if form.coefficient(a) == 1 and extents[a] > 1]
    if not fitting:
        return None
    along = max(fitting, key=lambda a: extents[a])
    following = [a for a in extents if form.coefficient(a) == extents[along] and extents[a] > 1]
    if extents[along] >= enough or not following or following[0] == along:
        return t, along
    return _contiguous(_merged(t, following[0], along), enough)


def _merged(t: Compute, outer: str, inner: str) -> Compute:
    """t with two of its axes as one, under the name of the inner one."""
    extents = _extents(t)
    n = extents[inner]
    env: dict[str, Expr] = {outer: Var(inner) // n, inner: Var(inner) % n}
    extents[inner] = extents.pop(outer) * n
    assert t.reduction is not None
    body: Expr = substitute(t.body, env)  # type: ignore[assignment]
    made = replace(t, body=body, reduction=replace(t.reduction, axes=tuple(extents.items())))
    return replace(made, body=simplify_loads(made.body, ranges_of(made)))


def _partial(t: Compute, along: str, width: int) -> Compute:
    """The extremes of parts, lane by lane: as [part, lane]."""
    assert t.reduction is not None
    extents, form = _extents(t), address(t, _main(t))
    others = sorted((a for a in extents if a != along), key=lambda a: -form.coefficient(a))
    outer = next((a for a in others if extents[a] > 1), None)
    count = min(MAX_PARTS, max(1, _count(t) // PART), extents.get(outer or "", 1))
    step = extents[outer] // count if outer else 1
    over = [extents[a] - (count - 1) * step if a == outer else extents[a] for a in others]
    length = extents[along]

    def element(part: Expr, lane: Expr, *axes: Expr) -> Expr:
        env: dict[str, Expr] = dict(zip(others, axes, strict=False))
        if outer and count > 1:
            env[outer] = part * step + env[outer]
        first = axes[-1] * width
        env[along] = (first if length % width == 0 else minimum(first, length - width)) + lane
        return substitute(t.body, env)  # type: ignore[return-value]

    steps = [*over, -(-length // width)]
    made = compute((count, width), element, reduce=t.reduction.op, over=steps)
    body = simplify_loads(made.body, ranges_of(made))
    return replace(made, body=body, op=t.op, node=t.node, inside=t.inside)
