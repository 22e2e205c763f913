"""Tensors that depend on constants alone: computed once, when the plan is made.

After packing, so that weights which only tiles read are not kept a second time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.fusion.inline import Program
from tilewright.fusion.weights import PackedWeights, aligned
from tilewright.loops.ir import Expr, Load, Node, makes_checks, rewrite, strides_of, substitute
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Compute, Constant, Elements, Tensor, sources

MAX_GROWTH = 8  # bytes kept for a byte of the constants; larger results are computed in each run
SMALL = 1 << 16  # bytes that are always kept


def settle(program: Program, weights: PackedWeights) -> dict[str, Constant]:
    """The tensors that readers need as constants, by name; the program no longer computes them."""
    outputs = {t.name for t in program.outputs}
    fixed: dict[str, Compute] = {}
    for t in program.order:
        if isinstance(t, Compute) and t.name not in outputs and _is_fixed(t, fixed):
            fixed[t.name] = t
    program.order = [t for t in program.order if t.name not in fixed]
    needed = {s.name for t in program.order for s in sources(t)}
    return {n: _settled(t, fixed, weights) for n, t in fixed.items() if n in needed}


def _is_fixed(t: Compute, fixed: dict[str, Compute]) -> bool:
    read = sources(t)
    if t.reduction is not None or makes_checks(t.body) or not read:
        return False
    if not all(isinstance(s, Constant) or s.name in fixed for s in read):
        return False
    whole = max(_bytes(t), 1)
    return whole <= max(SMALL, MAX_GROWTH * sum(_bytes(s) for s in read))


def _bytes(t: Tensor) -> int:
    return t.size * t.dtype.itemsize


def _settled(t: Compute, fixed: dict[str, Compute], weights: PackedWeights) -> Constant:
    whole = _of_constants(t, fixed)
    value = weights.derived(whole, f"settled {t.strides}", lambda: _laid_out(whole))
    return Constant(t.name, t.dtype, t.shape, t.strides, elements=Elements(value))


def _of_constants(t: Compute, fixed: dict[str, Compute]) -> Compute:
    """t with what it reads of other fixed tensors computed inside."""

    def rule(n: Node) -> Node | None:
        if not isinstance(n, Load) or n.buffer.name not in fixed:
            return None
        p = _of_constants(fixed[n.buffer.name], fixed)
        return substitute(p.body, dict(zip(p.axes, n.index, strict=True)))

    body: Expr = rewrite(t.body, rule)  # type: ignore[assignment]
    return t if body is t.body else replace(t, body=body)


def _laid_out(t: Compute) -> np.ndarray:
    """The elements, in the memory order that t's readers expect."""
    value = evaluate(t)
    order = sorted(range(t.rank), key=lambda k: -strides_of(t)[k])
    stored = aligned(value.transpose(order))
    return stored.transpose([order.index(k) for k in range(t.rank)])
