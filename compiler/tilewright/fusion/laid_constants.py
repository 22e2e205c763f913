"""Constants in the order in which threads that run side by side read them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tilewright.fusion.contraction import ranges_of
from tilewright.fusion.grid_products import MIN_COLUMNS
from tilewright.fusion.inline import Program, strides_in
from tilewright.fusion.renew import renewed
from tilewright.loops.ir import Expr, Load, Node, Var, rewrite, strides_of, walk
from tilewright.loops.locate import offset
from tilewright.ops.tensor import Compute, Constant, Tensor, fresh_axis, sources

MIN_SIZE = 1 << 6  # elements of a constant that is worth a copy


def lay_constants(program: Program) -> Program:
    """The program with copies of constants so laid out, which depend on nothing else: `settle`
    makes them constants again. What matmuls and convolutions on tiles read stays, but for
    matrices of too few columns for tiles."""
    made: dict[tuple[str, int], Compute] = {}
    done: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for t in program.order:
        current = renewed(t, done)
        if isinstance(current, Compute) and (
            not program.on_tiles(t) or _is_narrow(program, current)
        ):
            before = len(made)
            current = _laid(current, made)
            order += list(made.values())[before:]
        done[t.name] = current
        order.append(current)
    program.order = order
    program.outputs = tuple(done[t.name] for t in program.outputs)
    program.consumers = {t.name: [] for t in order}
    for t in order:
        for s in sources(t):
            program.consumers.setdefault(s.name, []).append(t)
    return program


def _is_narrow(program: Program, t: Compute) -> bool:
    """Whether t multiplies by a matrix of few columns."""
    c = program.contractions.get(t.name)
    if c is None or len(c.depth) > 1:
        return False
    own = c.b.axes - c.a.axes
    return prod(n for a, n in zip(t.axes, t.shape, strict=True) if a in own) < MIN_COLUMNS


def _laid(t: Compute, made: dict[tuple[str, int], Compute]) -> Compute:
    """t reading such copies."""
    fast = _fast_axis(t)

    def rule(n: Node) -> Node | None:
        if not isinstance(n, Load) or not isinstance(n.buffer, Constant):
            return None
        c = n.buffer
        k = next((k for k, i in enumerate(n.index) if i == Var(fast)), -1)
        if k < 0 or c.strides is not None or c.size < MIN_SIZE or strides_of(c)[k] == 1:
            return None
        if (c.name, k) not in made:
            made[c.name, k] = _copy(c, k)
        return Load(made[c.name, k], n.index)

    if not fast:
        return t
    body: Expr = rewrite(t.body, rule)  # type: ignore[assignment]
    return t if body is t.body else replace(t, body=body)


def _fast_axis(t: Compute) -> str:
    """The axis along which neighbouring threads go: the summed one along which the largest operand
    lies, otherwise that of neighbouring results."""
    loads = [n for n in walk(t.body) if isinstance(n, Load) and not isinstance(n.buffer, Constant)]
    if t.reduction is not None and loads:
        main = max(loads, key=lambda n: prod(n.buffer.shape))
        form = offset(main.buffer, main.index, ranges_of(t))
        along = (a for a, n in t.reduction.axes if n > 1 and form.coefficient(a) == 1)
        if found := next(along, ""):
            return found
    steps = zip(strides_of(t), t.axes, t.shape, strict=True)
    return min(((step, a) for step, a, n in steps if n > 1), default=(0, ""))[1]


def _copy(c: Constant, last: int) -> Compute:
    """The constant with the elements of one dimension side by side."""
    order = [k for k in range(c.rank) if k != last] + [last]
    axes = tuple(fresh_axis("i") for _ in c.shape)
    body = Load(c, tuple(map(Var, axes)))
    strides = strides_in(order, c.shape)
    return Compute(f"{c.name}_laid{last}", c.dtype, c.shape, strides, axes=axes, body=body)
