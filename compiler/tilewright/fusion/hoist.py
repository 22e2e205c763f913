"""What a map would compute for every element although it depends on few axes: computed before.

LLVM takes out of a loop what does not depend on its axis; what depends on nothing but the
innermost axis, such as a scale by channels, it would compute anew in each line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from tilewright.fusion.inline import EXPENSIVE, Program
from tilewright.fusion.renew import renewed
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.ir import (
    Apply,
    Const,
    Expr,
    Load,
    Node,
    Select,
    Var,
    dtype_of,
    makes_checks,
    map_children,
    strides_of,
    substitute,
    variables,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Constant, Tensor, fresh_axis, sources

MIN_SIZE = 1 << 14  # elements of a map for which one more kernel pays
MIN_REPEATS = 8
DEAR = EXPENSIVE | {ScalarOp.SQRT, ScalarOp.DIV}
STEPS = (ScalarOp.FLOORDIV, ScalarOp.MOD)


def hoist(program: Program, of_constants: bool = False) -> Program:
    """The program with such parts of its maps as tensors of their own; only those that depend on
    nothing but constants, if that is asked for: `settle` makes them constants too."""
    done: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for t in program.order:
        current = renewed(t, done)
        plain = isinstance(current, Compute) and not isinstance(current, WinogradCompute)
        least = 1 if of_constants else MIN_SIZE
        if plain and current.reduction is None and current.size >= least:  # type: ignore[attr-defined]
            current, parts = _Hoisting(current, of_constants).run()  # type: ignore[arg-type]
            order += parts
        done[t.name] = current
        order.append(current)
    program.order = order
    program.outputs = tuple(done[t.name] for t in program.outputs)
    program.consumers = {t.name: [] for t in order}
    for t in order:
        for s in sources(t):
            program.consumers[s.name].append(t)
    return program


@dataclass
class _Hoisting:
    t: Compute
    of_constants: bool = False
    made: dict[Expr, Compute] = field(default_factory=dict)

    def run(self) -> tuple[Compute, list[Compute]]:
        steps = strides_of(self.t)
        inner = [a for a, s, n in zip(self.t.axes, steps, self.t.shape, strict=True) if s == 1 < n]
        if not inner:
            return self.t, []
        self.inner = inner[-1]
        body: Expr = self.visit(self.t.body)  # type: ignore[assignment]
        return (replace(self.t, body=body), [*self.made.values()]) if self.made else (self.t, [])

    def visit(self, n: Node) -> Node:
        """The largest parts that pay, taken out; a choice keeps what only one side needs."""
        if isinstance(n, (Apply, Load)) and self.pays(n):
            return self.taken_out(n)
        if isinstance(n, (Load, Const, Var)):
            return n
        if isinstance(n, Select):
            return n
        return map_children(n, self.visit)

    def pays(self, e: Apply | Load) -> bool:
        used = variables(e)
        extents = self.extents
        if not used <= extents.keys() or makes_checks(e):
            return False
        if self.of_constants:
            loads = [n for n in walk(e) if isinstance(n, Load)]
            if not loads or not all(isinstance(n.buffer, Constant) for n in loads):
                return False
        elif self.inner not in used:
            return False
        few = prod(extents[a] for a in used) * MIN_REPEATS <= self.t.size
        return few and dtype_of(e).is_float and any(_is_dear(n) for n in walk(e))

    @property
    def extents(self) -> Mapping[str, int]:
        return dict(zip(self.t.axes, self.t.shape, strict=True))

    def taken_out(self, e: Expr) -> Load:
        axes = [a for a in self.t.axes if a in variables(e)]
        if e not in self.made:
            names = tuple(fresh_axis("i") for _ in axes)
            env: dict[str, Expr] = dict(zip(axes, map(Var, names), strict=True))
            body: Expr = substitute(e, env)  # type: ignore[assignment]
            shape = tuple(self.extents[a] for a in axes)
            name = f"{self.t.name}_part{len(self.made)}"
            self.made[e] = Compute(
                name, dtype_of(e), shape, axes=names, body=body, op=self.t.op, node=self.t.node
            )
        return Load(self.made[e], tuple(Var(a) for a in axes))


def _is_dear(n: Node) -> bool:
    """Whether this is a function that takes long, or a load that vectors would have to gather."""
    if isinstance(n, Load):
        return any(isinstance(m, Apply) and m.op in STEPS for i in n.index for m in walk(i))
    return isinstance(n, Apply) and n.op in DEAR and dtype_of(n).is_float
