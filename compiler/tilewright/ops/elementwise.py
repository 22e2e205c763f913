"""Element by element: arithmetic, comparison, logic and elementary functions.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce as fold

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, elementwise, fail, select
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor

UNARY = {
    "Neg": ScalarOp.NEG,
    "Abs": ScalarOp.ABS,
    "Sign": ScalarOp.SIGN,
    "Sqrt": ScalarOp.SQRT,
    "Exp": ScalarOp.EXP,
    "Log": ScalarOp.LOG,
    "Sin": ScalarOp.SIN,
    "Cos": ScalarOp.COS,
    "Tan": ScalarOp.TAN,
    "Asin": ScalarOp.ASIN,
    "Acos": ScalarOp.ACOS,
    "Atan": ScalarOp.ATAN,
    "Sinh": ScalarOp.SINH,
    "Cosh": ScalarOp.COSH,
    "Tanh": ScalarOp.TANH,
    "Asinh": ScalarOp.ASINH,
    "Acosh": ScalarOp.ACOSH,
    "Atanh": ScalarOp.ATANH,
    "Erf": ScalarOp.ERF,
    "Sigmoid": ScalarOp.SIGMOID,
    "Floor": ScalarOp.FLOOR,
    "Ceil": ScalarOp.CEIL,
    "Round": ScalarOp.RINT,
    "Not": ScalarOp.NOT,
    "IsNaN": ScalarOp.ISNAN,
    "BitwiseNot": ScalarOp.BITNOT,
}

BINARY = {
    "Add": ScalarOp.ADD,
    "Sub": ScalarOp.SUB,
    "Mul": ScalarOp.MUL,
    "Div": ScalarOp.DIV,
    "Equal": ScalarOp.EQ,
    "Greater": ScalarOp.GT,
    "GreaterOrEqual": ScalarOp.GE,
    "Less": ScalarOp.LT,
    "LessOrEqual": ScalarOp.LE,
    "And": ScalarOp.AND,
    "Or": ScalarOp.OR,
    "Xor": ScalarOp.XOR,
    "BitwiseAnd": ScalarOp.BITAND,
    "BitwiseOr": ScalarOp.BITOR,
    "BitwiseXor": ScalarOp.BITXOR,
}


def native(*tensors: Tensor) -> None:
    """Raises UnsupportedError unless kernels compute on all the types."""
    for t in tensors:
        if not t.dtype.is_native:
            raise UnsupportedError(f"kernels do not compute on {t.dtype.name}")


def _unary(scalar: ScalarOp) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        native(x)
        return elementwise(lambda v: apply(scalar, v), x)

    return function


def _binary(scalar: ScalarOp) -> Callable[[Tensor, Tensor], Tensor]:
    def function(a: Tensor, b: Tensor) -> Tensor:
        same_type(a, b)
        return elementwise(lambda v, w: apply(scalar, v, w), a, b)

    return function


def same_type(*tensors: Tensor) -> None:
    """Raises unless all operands have one native type."""
    native(*tensors)
    if len({t.dtype for t in tensors}) != 1:
        raise fail(f"operands of different types {[t.dtype.name for t in tensors]}")


for _name, _scalar in UNARY.items():
    op(_name)(_unary(_scalar))
for _name, _scalar in BINARY.items():
    op(_name)(_binary(_scalar))


def _variadic(scalar: ScalarOp) -> Callable[..., Tensor]:
    def function(*operands: Tensor) -> Tensor:
        same_type(*operands)
        if len(operands) == 1:
            return operands[0]
        return elementwise(lambda *v: fold(lambda a, b: apply(scalar, a, b), v), *operands)

    return function


op("Max")(_variadic(ScalarOp.MAX))
op("Min")(_variadic(ScalarOp.MIN))
total = op("Sum")(_variadic(ScalarOp.ADD))


@op("Mean")
def mean(*operands: Tensor) -> Tensor:
    result = total(*operands)
    assert isinstance(result, Tensor)
    return elementwise(lambda v: v / len(operands), result)


@op("Reciprocal")
def reciprocal(x: Tensor) -> Tensor:
    return elementwise(lambda v: 1.0 / v, x)


@op("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    same_type(a, b)
    return elementwise(lambda v, w: apply(ScalarOp.REM if fmod else ScalarOp.MOD, v, w), a, b)


@op("Pow")
def power(a: Tensor, b: Tensor) -> Tensor:
    native(a, b)
    if a.dtype is b.dtype:
        return elementwise(lambda v, w: _power(v, w), a, b)
    wide = a.dtype if a.dtype.is_float else DType.F64 if b.dtype.is_float else a.dtype
    return elementwise(lambda v, w: cast(a.dtype, _power(cast(wide, v), cast(wide, w))), a, b)


def _power(base: Expr, exponent: Expr) -> Expr:
    return apply(ScalarOp.POW, base, exponent)


@op("Clip")
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    native(x)
    bounds = [t for t in (low, high) if t is not None]
    if any(t.size != 1 for t in bounds):
        raise fail(f"the bounds are no scalars but {[t.shape for t in bounds]}")

    def element(v: Expr) -> Expr:
        if low is not None:
            v = apply(ScalarOp.MAX, v, low[[0] * low.rank])
        return apply(ScalarOp.MIN, v, high[[0] * high.rank]) if high is not None else v

    return elementwise(element, x) if bounds else x


@op("Where")
def where(condition: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    same_type(then, otherwise)
    return elementwise(select, condition, then, otherwise)


@op("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    def element(v: Expr) -> Operand:
        found = apply(ScalarOp.ISINF, v)
        if detect_negative and detect_positive:
            return found
        if not detect_negative and not detect_positive:
            return False
        return found & (v < 0 if detect_negative else v > 0)

    return elementwise(element, x, dtype=DType.BOOL)


@op("BitShift")
def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    same_type(a, b)
    scalar = {"LEFT": ScalarOp.SHL, "RIGHT": ScalarOp.SHR}.get(direction)
    if scalar is None:
        raise fail(f"direction {direction!r} is neither LEFT nor RIGHT")
    return elementwise(lambda v, w: apply(scalar, v, w), a, b)


@op("Identity")
def identity(x: Tensor) -> Tensor:
    return x


