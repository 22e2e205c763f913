"""Softmax and its relatives, as maximum, difference, exponential, sum and quotient: fusion makes
one kernel of them.

Source: https://onnx.ai/onnx/operators/onnx__Softmax.html
"""

from __future__ import annotations

from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, elementwise, normalize_axis, reduce
from tilewright.ops.reductions import arg_max
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute


@op("Softmax")
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = normalize_axis(axis, x.rank)
    top = reduce(ScalarOp.MAX, x, [at], True)
    powers = elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    total = reduce(ScalarOp.ADD, powers, [at], True)
    return elementwise(lambda a, b: a / b, powers, total)


@op("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = normalize_axis(axis, x.rank)
    top = reduce(ScalarOp.MAX, x, [at], True)
    powers = elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    total = reduce(ScalarOp.ADD, powers, [at], True)
    return elementwise(lambda a, b, s: (a - b) - apply(ScalarOp.LOG, s), x, top, total)


@op("Hardmax")
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = normalize_axis(axis, x.rank)
    best = arg_max(x, axis=at, keepdims=1)

    def element(*i: Expr) -> Expr:
        where: list[Operand] = [0 if k == at else v for k, v in enumerate(i)]
        return cast(x.dtype, best[where].eq(i[at]))

    return compute(x.shape, element)
