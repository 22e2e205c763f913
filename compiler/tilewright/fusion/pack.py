"""The column operand of every contraction, copied into panels: [batch..., panel, depth..., lane].

Bytes are read four along the depth at a time: [batch..., panel, depth..., depth / 4, lane, 4].
A constant is packed once and shared by all plans; anything else is packed by a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from tilewright.dtypes import DType
from tilewright.fusion.contraction import Contraction, Operand, address, ranges_of
from tilewright.fusion.decide import Pick, Point, by_cost_model
from tilewright.fusion.inline import Program
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import (
    Apply,
    Cast,
    Const,
    Expr,
    Load,
    Select,
    Var,
    dtype_of,
    rewrite,
    substitute,
    variables,
)
from tilewright.loops.microtile import QUAD
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, select
from tilewright.ops.tensor import (
    Compute,
    Constant,
    Elements,
    NestOutput,
    Reduction,
    Tensor,
    compute,
    constant,
    sources,
)


def pack_operands(
    program: Program,
    lanes: Mapping[int, int],
    weights: PackedWeights,
    pick: Pick = by_cost_model,
) -> Program:
    """The program with every contraction reading panels. `lanes`: vector length by bits of an
    element."""
    order: list[Tensor] = []
    done: dict[str, Tensor] = {}
    for t in program.order:
        contraction = program.contractions.get(t.name)
        if isinstance(t, Compute) and contraction is not None:
            t, contraction = _merge_depth(t, contraction)
            packed = _from_constants(_panels(t, contraction, lanes[t.dtype.bits], pick))
            stored: Tensor = (
                constant(weights.get(packed), packed.dtype) if _is_constant(packed) else packed
            )
            t, program.contractions[t.name] = _read_panels(t, contraction, stored)
            order.append(stored)
            program.consumers[stored.name] = [t]
            for s in sources(packed):
                program.consumers[s.name].append(stored)
        elif isinstance(t, Compute) and _feeds_nests(t, program):
            t = _stored(t, weights)
        elif isinstance(t, Compute) and t.strides is not None and t.reduction is not None:
            t = _channels_innermost(t)
        order.append(t)
        done[t.name] = t
    program.outputs = tuple(done.get(t.name, t) for t in program.outputs)
    program.order = _needed(order, program.outputs)
    return program


def _needed(order: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that something still reads: not those whose only use was to be packed."""
    read = {t.name for t in outputs}
    kept: list[Tensor] = []
    for t in reversed(order):
        siblings = {o.name for o in t.nest[0].outputs} if isinstance(t, NestOutput) else {t.name}
        if siblings & read or not isinstance(t, Compute):
            kept.append(t)
            read |= {s.name for s in sources(t)}
    return kept[::-1]


def _feeds_nests(t: Compute, program: Program) -> bool:
    readers = program.consumers[t.name]
    is_output = any(t.name == o.name for o in program.outputs)
    only = bool(readers) and all(isinstance(r, NestOutput) for r in readers)
    return only and not is_output


def _stored(t: Compute, weights: PackedWeights) -> Tensor:
    """What a hand-written nest reads: computed now and shared, if it depends on constants alone."""
    packed = _from_constants(t)
    if not _is_constant(packed):
        return t
    return Constant(t.name, t.dtype, t.shape, elements=Elements(weights.get(packed)))


def _channels_innermost(t: Compute) -> Compute:
    """t with constants that follow its channels laid out as they are read: channel by channel.

    For depthwise convolutions, whose weights come with the window innermost.
    """

    def rule(n: object) -> Load | None:
        if not isinstance(n, Load) or not isinstance(n.buffer, Constant) or n.buffer.strides:
            return None
        along = [k for k, i in enumerate(n.index) if i == Var(t.axes[1])]
        if len(along) != 1 or n.buffer.rank < 2:
            return None
        return Load(_innermost(n.buffer, along[0]), n.index)

    return replace(t, body=rewrite(t.body, rule))  # type: ignore[arg-type]


def _innermost(c: Constant, axis: int) -> Constant:
    """The same constant with one dimension contiguous in memory."""
    order = [*(k for k in range(c.rank) if k != axis), axis]
    stored = np.ascontiguousarray(c.value.transpose(order))
    strides = [0] * c.rank
    for place, k in enumerate(order):
        strides[k] = stored.strides[place] // stored.itemsize
    value = stored.transpose([order.index(k) for k in range(c.rank)])
    return replace(c, name=f"{c.name}_last{axis}", strides=tuple(strides), elements=Elements(value))


def _is_constant(packed: Compute) -> bool:
    found = sources(packed)
    return bool(found) and all(isinstance(s, Constant) for s in found)


def _from_constants(packed: Compute) -> Compute:
    """The panels with maps of constants computed inside: weights that are widened, scaled, shifted.

    Then they depend on constants alone and are packed once.
    """

    def rule(n: object) -> Expr | None:
        if not isinstance(n, Load) or not isinstance(p := n.buffer, Compute) or p.reduction:
            return None
        if not all(isinstance(s, Constant) for s in sources(p)):
            return None
        return substitute(p.body, dict(zip(p.axes, n.index, strict=True)))  # type: ignore[return-value]

    body: Expr = rewrite(packed.body, rule)  # type: ignore[arg-type,assignment]
    return packed if body is packed.body else replace(packed, body=body)


def _merge_depth(t: Compute, c: Contraction) -> tuple[Compute, Contraction]:
    """Summed axes that `a` steps through as through one become one."""
    assert t.reduction is not None
    depth, extents = list(c.depth), dict(t.reduction.axes)
    guarded: frozenset[str] = (
        frozenset().union(*(variables(g) for g in c.a.guards)) if c.a.guards else frozenset()
    )
    body, load = t.body, c.a.load
    for k in range(len(depth) - 2, -1, -1):
        outer, inner = depth[k], depth[k + 1]
        form = address(
            replace(t, body=body, reduction=Reduction(ScalarOp.ADD, tuple(extents.items()))), load
        )
        n = extents[inner]
        if {outer, inner} & guarded or form.coefficient(outer) != form.coefficient(inner) * n:
            continue
        env: dict[str, Expr] = {outer: Var(inner) // n, inner: Var(inner) % n}
        extents[inner] = extents.pop(outer) * n
        ranges = {
            a: (0.0, float(e) - 1)
            for a, e in [*zip(t.axes, t.shape, strict=True), *extents.items()]
        }
        body = simplify_loads(substitute(body, env), ranges)  # type: ignore[arg-type]
        load = substitute(load, env)  # type: ignore[assignment]
        c = replace(c, a=Operand(load, c.a.guards), b=_substituted(c.b, env))
        depth.pop(k)
    merged = replace(
        t, body=body, reduction=Reduction(ScalarOp.ADD, tuple((a, extents[a]) for a in depth))
    )
    return merged, replace(c, depth=tuple(depth))


def _substituted(o: Operand, env: dict[str, Expr]) -> Operand:
    guards = tuple(substitute(g, env) for g in o.guards)
    return Operand(substitute(o.load, env), guards)  # type: ignore[arg-type]


def _panel_width(columns: int, lanes: int) -> int:
    """Two vectors, or one where that wastes less."""
    wide = 2 * lanes
    return wide if columns > 3 * wide or columns % wide == 0 or columns % wide > lanes else lanes


def _width_point(t: Compute, c: Contraction, columns: int, lanes: int) -> Point:
    """How wide the panels are: one vector or two."""
    assert t.reduction is not None
    summed = t.reduction.axes
    place = t.axes.index(c.rows) if c.rows else -1

    def facts() -> Hashable:
        extents = t.shape, tuple(n for _, n in summed), len(c.a.guards)
        return t.dtype, place, t.axes.index(c.columns), *extents

    work = t.size * prod(n for _, n in summed)
    default = _panel_width(columns, lanes)
    return Point("panel", facts, (lanes, 2 * lanes), default, work)


def _panels(t: Compute, c: Contraction, lanes: int, pick: Pick) -> Compute:
    """The packed operand as a map."""
    assert t.reduction is not None
    sizes = dict(zip(t.axes, t.shape, strict=True))
    extents = dict(t.reduction.axes)
    batch = _batch(t, c)
    columns = sizes[c.columns]
    width = pick(_width_point(t, c, columns, lanes))
    deep = [extents[d] for d in c.depth]
    inner = [deep.pop() // QUAD, width, QUAD] if c.of_bytes else [width]
    shape = (*(sizes[a] for a in batch), -(-columns // width), *deep, *inner)

    def element(*i: Expr) -> Expr:
        lane, outer, steps = i[-1], i[: len(batch)], i[len(batch) + 1 : -1]
        if c.of_bytes:
            lane, steps = i[-2], (*steps[:-2], steps[-2] * QUAD + i[-1])
        column = i[len(batch)] * width + lane
        env = dict(zip((*batch, *c.depth), (*outer, *steps), strict=True))
        o = _substituted(c.b, {**env, c.columns: column})
        guards = [*o.guards, *([column < columns] if columns % width else [])]
        value = cast(DType.I8 if c.of_bytes else t.dtype, o.load)
        if not guards:
            return value
        whole = guards[0]
        for g in guards[1:]:
            whole = Apply(ScalarOp.AND, (whole, g))
        return select(whole, value, 0)

    packed = compute(shape, element)
    return replace(packed, body=simplify_loads(packed.body, ranges_of(packed)), op="Pack")


def _batch(t: Compute, c: Contraction) -> list[str]:
    return [a for a in t.axes if a in c.b.axes and a != c.columns]


def _read_panels(t: Compute, c: Contraction, stored: Tensor) -> tuple[Compute, Contraction]:
    column, inner = Var(c.columns), Var(c.depth[-1])
    deep: list[Expr] = [Var(d) for d in c.depth]
    if c.of_bytes:
        width = stored.shape[-2]
        deep[-1:] = [inner // QUAD, column % width, inner % QUAD]
    else:
        width = stored.shape[-1]
        deep.append(column % width)
    b = Load(stored, (*(Var(a) for a in _batch(t, c)), column // width, *deep))
    a: Expr = c.a.load
    for g in reversed(c.a.guards):
        a = Select(g, a, Const(0.0, dtype_of(a)))
    factors = (a, b) if not c.of_bytes else (Cast(t.dtype, a), Cast(t.dtype, b))
    return replace(t, body=Apply(ScalarOp.MUL, factors)), replace(c, b=Operand(b))
