"""Softmax and its relatives, as maximum, difference, exponential, sum and quotient: fusion makes
one kernel of them.

Source: https://onnx.ai/onnx/operators/onnx__Softmax.html
"""

from __future__ import annotations

from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, elementwise, fail, normalize_axis, reduce
from tilewright.ops.operands import FLOATS, require
from tilewright.ops.reductions import arg_max, converted
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute


def _axis(x: Tensor, axis: int) -> int:
    require(FLOATS, x)
    if x.rank == 0:
        raise fail("a scalar has no axis")
    return normalize_axis(axis, x.rank)


def _powers(x: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum along an axis, exponentials of the differences from it, and their sum."""
    top = reduce(ScalarOp.MAX, x, [at], True)
    powers = elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    return top, powers, reduce(ScalarOp.ADD, powers, [at], True)


@op("Softmax")
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = _axis(x, axis)
    _, powers, total = _powers(converted(x, x.dtype.compute), at)
    return converted(elementwise(lambda a, b: a / b, powers, total), x.dtype)


@op("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at, wide = _axis(x, axis), converted(x, x.dtype.compute)
    top, _, total = _powers(wide, at)
    result = elementwise(lambda a, b, s: (a - b) - apply(ScalarOp.LOG, s), wide, top, total)
    return converted(result, x.dtype)


@op("Hardmax")
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = _axis(x, axis)
    if x.size == 0:
        return x
    best = arg_max(x, axis=at, keepdims=1)

    def element(*i: Expr) -> Expr:
        where: list[Operand] = [0 if k == at else v for k, v in enumerate(i)]
        return cast(x.dtype, best[where].eq(i[at]))

    return compute(x.shape, element)
