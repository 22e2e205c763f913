"""Comparisons, logic, bits and choice, element by element.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.dtypes import DType
from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import elementwise, fail, minimum, select
from tilewright.ops.operands import (
    BOOLS,
    FLOATS,
    INTEGERS,
    NATIVE,
    NUMBERS,
    require,
    same_type,
)
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor

# name: (scalar function, kinds of element types that ONNX defines it for)
UNARY = {
    "Not": (ScalarOp.NOT, BOOLS),
    "IsNaN": (ScalarOp.ISNAN, FLOATS),
    "BitwiseNot": (ScalarOp.BITNOT, INTEGERS),
}

BINARY = {
    "Equal": (ScalarOp.EQ, NATIVE),
    "Greater": (ScalarOp.GT, NUMBERS),
    "GreaterOrEqual": (ScalarOp.GE, NUMBERS),
    "Less": (ScalarOp.LT, NUMBERS),
    "LessOrEqual": (ScalarOp.LE, NUMBERS),
    "And": (ScalarOp.AND, BOOLS),
    "Or": (ScalarOp.OR, BOOLS),
    "Xor": (ScalarOp.XOR, BOOLS),
    "BitwiseAnd": (ScalarOp.BITAND, INTEGERS),
    "BitwiseOr": (ScalarOp.BITOR, INTEGERS),
    "BitwiseXor": (ScalarOp.BITXOR, INTEGERS),
}


def _unary(scalar: ScalarOp, kinds: str) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        require(kinds, x)
        return elementwise(lambda v: apply(scalar, v), x)

    return function


def _binary(scalar: ScalarOp, kinds: str) -> Callable[[Tensor, Tensor], Tensor]:
    def function(a: Tensor, b: Tensor) -> Tensor:
        same_type(a, b, kinds=kinds)
        return elementwise(lambda v, w: apply(scalar, v, w), a, b)

    return function


for _name, (_scalar, _kinds) in UNARY.items():
    op(_name)(_unary(_scalar, _kinds))
for _name, (_scalar, _kinds) in BINARY.items():
    op(_name)(_binary(_scalar, _kinds))


@op("Where")
def where(condition: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    require(BOOLS, condition)
    same_type(then, otherwise)
    return elementwise(select, condition, then, otherwise)


@op("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    require(FLOATS, x)

    def element(v: Expr) -> Operand:
        if not detect_negative and not detect_positive:
            return False
        found = apply(ScalarOp.ISINF, v)
        if detect_negative and detect_positive:
            return found
        return found & (v < 0 if detect_negative else v > 0)

    return elementwise(element, x, dtype=DType.BOOL)


@op("BitShift")
def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    same_type(a, b, kinds=INTEGERS)
    if direction == "LEFT":
        return elementwise(lambda v, w: apply(ScalarOp.SHL, v, w), a, b)
    if direction != "RIGHT":
        raise fail(f"direction {direction!r} is neither LEFT nor RIGHT")
    if a.dtype.kind == "u":
        return elementwise(lambda v, w: apply(ScalarOp.SHR, v, w), a, b)
    # A shift by the whole width or more leaves the sign, as does a shift by all bits but one;
    # a negative count is a large one when its bits are read as those of an unsigned number.
    last = a.dtype.bits - 1

    def shifted(v: Expr, w: Expr) -> Expr:
        return apply(ScalarOp.SHR, v, select(w < 0, last, minimum(w, last)))

    return elementwise(shifted, a, b)
