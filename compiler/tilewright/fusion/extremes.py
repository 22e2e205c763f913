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
from tilewright.loops.ir import Expr, Load, Var, substitute, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum
from tilewright.ops.tensor import Compute, Tensor, compute, sources

VECTORS = 2  # of lanes that are kept apart
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
    extents, width = dict(t.reduction.axes), VECTORS * lanes.get(t.dtype.bits, 0)
    along = _contiguous(t)
    if not width or prod(extents.values()) < FEW or along is None or extents[along] < width:
        return []
    parts = _partial(t, along, width)
    steps = [parts]
    if parts.shape[0] > 1:
        op = t.reduction.op
        steps.append(compute((width,), lambda k, p: parts[p, k], reduce=op, over=parts.shape[:1]))
        steps[-1] = replace(steps[-1], op=t.op, node=t.node)
    lane = replace(t.reduction, axes=((along, width),))
    last = steps[-1]
    index = (Var(along),) if last.rank == 1 else (0, Var(along))
    return [*steps, replace(t, body=last[index], reduction=lane)]


def _contiguous(t: Compute) -> str | None:
    """The longest axis along which the elements of the largest operand lie side by side."""
    assert t.reduction is not None
    form = address(t, max(_loads(t), key=lambda n: prod(n.buffer.shape)))
    fitting = [x for x in t.reduction.axes if form.coefficient(x[0]) == 1]
    return max(fitting, key=lambda x: x[1], default=(None, 0))[0]


def _loads(t: Compute) -> list[Load]:
    return [n for n in walk(t.body) if isinstance(n, Load)]


def _partial(t: Compute, along: str, width: int) -> Compute:
    """The extremes of parts, lane by lane: as [part, lane]."""
    assert t.reduction is not None
    extents = dict(t.reduction.axes)
    form = address(t, max(_loads(t), key=lambda n: prod(n.buffer.shape)))
    others = sorted((a for a in extents if a != along), key=lambda a: -form.coefficient(a))
    outer = next((a for a in others if extents[a] > 1), None)
    count = min(MAX_PARTS, max(1, prod(extents.values()) // PART), extents.get(outer or "", 1))
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
    return replace(made, body=simplify_loads(made.body, ranges_of(made)), op=t.op, node=t.node)
