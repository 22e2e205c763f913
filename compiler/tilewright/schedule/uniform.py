"""Conditions that hold for all lanes of a vector or for none of them."""

from __future__ import annotations

from tilewright.dtypes import DType
from tilewright.loops.affine import Ranges, linear, to_expr
from tilewright.loops.ir import Apply, Const, Expr, Load, dtype_of, index_const, variables, walk
from tilewright.loops.scalars import ScalarOp

_SHIFT = {ScalarOp.LT: 0, ScalarOp.GE: 0, ScalarOp.LE: 1, ScalarOp.GT: 1}
_SIGN = {
    ScalarOp.LT: ScalarOp.LT,
    ScalarOp.LE: ScalarOp.LT,
    ScalarOp.GT: ScalarOp.GE,
    ScalarOp.GE: ScalarOp.GE,
}


def uniform(condition: Expr, axis: str, lanes: int, ranges: Ranges) -> Expr | None:
    """An equal condition that does not read the axis, which has `lanes` iterations; None where
    they may differ. Conditions on data are not looked into."""
    if any(isinstance(n, Load) for n in walk(condition)):
        return None
    if axis not in variables(condition):
        return condition
    match condition:
        case Apply(op=ScalarOp.AND | ScalarOp.OR as op, args=(a, b)):
            x, y = uniform(a, axis, lanes, ranges), uniform(b, axis, lanes, ranges)
            return Apply(op, (x, y)) if x is not None and y is not None else None
        case Apply(op=ScalarOp.NOT, args=(a,)):
            inner = uniform(a, axis, lanes, ranges)
            return Apply(ScalarOp.NOT, (inner,)) if inner is not None else None
        case Apply(op=op, args=(a, b)) if op in _SHIFT and dtype_of(a) is DType.I64:
            return _compared(op, a - b - _SHIFT[op], axis, lanes, ranges)
    return None


def _compared(op: ScalarOp, e: Expr, axis: str, lanes: int, ranges: Ranges) -> Expr | None:
    """Whether e, which is lanes * x + y with y from 0 to lanes-1, is negative: whether x is."""
    whole = to_expr(linear(e, ranges))
    if axis in variables(whole):
        whole = to_expr(linear(whole // lanes, ranges))
    if axis in variables(whole):
        return None
    if isinstance(whole, Const):
        return Const((int(whole.value) < 0) is (_SIGN[op] is ScalarOp.LT), DType.BOOL)
    return Apply(_SIGN[op], (whole, index_const(0)))
