"""Element by element: arithmetic and elementary functions.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce as fold

from tilewright.dtypes import DType
from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, elementwise, fail
from tilewright.ops.operands import FLOATS, NUMBERS, require, same_type
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor

# name: (scalar function, kinds of element types that ONNX defines it for)
UNARY = {
    "Neg": (ScalarOp.NEG, NUMBERS),
    "Abs": (ScalarOp.ABS, NUMBERS),
    "Sign": (ScalarOp.SIGN, NUMBERS),
    "Sqrt": (ScalarOp.SQRT, FLOATS),
    "Exp": (ScalarOp.EXP, FLOATS),
    "Log": (ScalarOp.LOG, FLOATS),
    "Sin": (ScalarOp.SIN, FLOATS),
    "Cos": (ScalarOp.COS, FLOATS),
    "Tan": (ScalarOp.TAN, FLOATS),
    "Asin": (ScalarOp.ASIN, FLOATS),
    "Acos": (ScalarOp.ACOS, FLOATS),
    "Atan": (ScalarOp.ATAN, FLOATS),
    "Sinh": (ScalarOp.SINH, FLOATS),
    "Cosh": (ScalarOp.COSH, FLOATS),
    "Tanh": (ScalarOp.TANH, FLOATS),
    "Asinh": (ScalarOp.ASINH, FLOATS),
    "Acosh": (ScalarOp.ACOSH, FLOATS),
    "Atanh": (ScalarOp.ATANH, FLOATS),
    "Floor": (ScalarOp.FLOOR, FLOATS),
    "Ceil": (ScalarOp.CEIL, FLOATS),
    "Round": (ScalarOp.RINT, FLOATS),
}

BINARY = {
    "Add": ScalarOp.ADD,
    "Sub": ScalarOp.SUB,
    "Mul": ScalarOp.MUL,
    "Div": ScalarOp.DIV,
}


def _unary(scalar: ScalarOp, kinds: str) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        require(kinds, x)
        return elementwise(lambda v: apply(scalar, v), x)

    return function


def _binary(scalar: ScalarOp) -> Callable[[Tensor, Tensor], Tensor]:
    def function(a: Tensor, b: Tensor) -> Tensor:
        same_type(a, b, kinds=NUMBERS)
        return elementwise(lambda v, w: apply(scalar, v, w), a, b)

    return function


for _name, (_scalar, _kinds) in UNARY.items():
    op(_name)(_unary(_scalar, _kinds))
for _name, _scalar in BINARY.items():
    op(_name)(_binary(_scalar))


def _variadic(scalar: ScalarOp, kinds: str) -> Callable[..., Tensor]:
    def function(*operands: Tensor) -> Tensor:
        same_type(*operands, kinds=kinds)
        if len(operands) == 1:
            return operands[0]
        return elementwise(lambda *v: fold(lambda a, b: apply(scalar, a, b), v), *operands)

    return function


total = _variadic(ScalarOp.ADD, FLOATS)
op("Max")(_variadic(ScalarOp.MAX, NUMBERS))
op("Min")(_variadic(ScalarOp.MIN, NUMBERS))
op("Sum")(total)


@op("Mean")
def mean(*operands: Tensor) -> Tensor:
    return elementwise(lambda v: v / len(operands), total(*operands))


@op("Reciprocal")
def reciprocal(x: Tensor) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: 1.0 / v, x)


@op("Erf")
def erf(x: Tensor) -> Tensor:
    require(NUMBERS, x)
    wide = x.dtype if x.dtype.is_float else DType.F64
    return elementwise(lambda v: cast(x.dtype, apply(ScalarOp.ERF, cast(wide, v))), x)


@op("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder, with the divisor's sign, or with the dividend's if `fmod`."""
    same_type(a, b, kinds=NUMBERS)
    scalar = ScalarOp.REM if fmod else ScalarOp.MOD
    return elementwise(lambda v, w: apply(scalar, v, w), a, b)


@op("Pow")
def power(a: Tensor, b: Tensor) -> Tensor:
    """Powers in the type of the base; the exponent may be of another."""
    require(NUMBERS, a, b)
    wide = _power_type(a.dtype, b.dtype)
    return elementwise(
        lambda v, w: cast(a.dtype, apply(ScalarOp.POW, cast(wide, v), cast(wide, w))), a, b
    )


def _power_type(base: DType, exponent: DType) -> DType:
    if base is exponent or (base.is_integer and exponent.is_integer):
        return base
    if DType.F64 in (base, exponent) or base.is_integer:
        return DType.F64
    return base.compute


@op("Clip")
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """min(max(x, low), high): the upper bound wins where the two cross."""
    bounds = [t for t in (low, high) if t is not None]
    same_type(x, *bounds, kinds=NUMBERS)
    if any(t.size != 1 for t in bounds):
        raise fail(f"the bounds are no scalars but {[t.shape for t in bounds]}")

    def element(v: Expr) -> Operand:
        if low is not None:
            v = apply(ScalarOp.MAX, v, low[[0] * low.rank])
        return apply(ScalarOp.MIN, v, high[[0] * high.rank]) if high is not None else v

    return elementwise(element, x) if bounds else x


@op("Identity")
def identity(x: Tensor) -> Tensor:
    return x
