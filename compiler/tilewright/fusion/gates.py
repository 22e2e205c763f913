"""Sigmoid and tanh before a quantisation, as the quotients that other runtimes compute there.

Rounding to a byte turns a difference in the last bit into one of a whole step, now and then; models
were trained and checked with those bits. Elsewhere the more exact functions stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.dtypes import DType
from tilewright.fusion.inline import topological
from tilewright.fusion.renew import renewed
from tilewright.loops.ir import Apply, Cast, Expr, Node, dtype_of, rewrite
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Tensor, sources

QUOTIENTS = {
    ScalarOp.SIGMOID: ScalarOp.RATIONAL_SIGMOID,
    ScalarOp.TANH: ScalarOp.RATIONAL_TANH,
}


def quotients_before_quantisation(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, with quotients wherever a byte depends on a sigmoid or tanh of float32."""
    order = topological(outputs)
    before = _before_bytes(order)
    done: dict[str, Tensor] = {}
    for t in order if before else ():
        current = renewed(t, done)
        if isinstance(current, Compute) and t.name in before:
            body: Expr = rewrite(current.body, _quotient)  # type: ignore[assignment]
            current = current if body is current.body else replace(current, body=body)
        done[t.name] = current
    return [done.get(t.name, t) for t in outputs]


def _before_bytes(order: Sequence[Tensor]) -> set[str]:
    """The tensors on which a byte that is rounded from a float depends."""
    found: set[str] = set()
    for t in reversed(order):
        if t.name in found or _is_quantised(t):
            found |= {s.name for s in sources(t)}
    return found


def _is_quantised(t: Tensor) -> bool:
    match t:
        case Compute(body=Cast(dtype=DType.U8 | DType.I8, arg=value)):
            return dtype_of(value).is_float
    return False


def _quotient(n: Node) -> Node | None:
    if not isinstance(n, Apply) or n.op not in QUOTIENTS or dtype_of(n) is not DType.F32:
        return None
    return Apply(QUOTIENTS[n.op], n.args)
