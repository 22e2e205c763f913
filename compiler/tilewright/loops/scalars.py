"""The scalar functions: one row each, with the meaning that defines it. A target adds only a
spelling.

`rule` says what type the result has: that of the operands, or bool. `identity` marks the monoids
that a
reduction may use: the element that changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np

from tilewright.dtypes import DType

Meaning = Callable[..., Any]


def _divide(a: Any, b: Any) -> Any:
    """ONNX's division: exact for floats, truncating for integers."""
    if np.asarray(a).dtype.kind == "f":
        return np.divide(a, b)
    if np.asarray(a).dtype.kind == "u":
        return np.floor_divide(a, b)
    quotient = np.floor_divide(a, b)
    return (quotient + ((np.remainder(a, b) != 0) & ((a < 0) != (b < 0)))).astype(
        np.asarray(a).dtype
    )


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return (np.where(x >= 0, 1, e) / (1 + e)).astype(np.asarray(x).dtype)


def _shift(direction: Callable[..., Any]) -> Meaning:
    def meaning(a: Any, b: Any) -> Any:
        bits = np.asarray(a).dtype.itemsize * 8
        return np.where(np.asarray(b) < bits, direction(a, b), np.zeros_like(a))

    return meaning


def _power(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind in "iu":
        return np.power(np.asarray(a).astype(np.float64), b).astype(np.asarray(a).dtype)
    return np.power(a, b)


def _tf32(x: Any) -> Any:
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(np.float32)


_erf = np.vectorize(math.erf, otypes=[np.float64])


class ScalarOp(Enum):
    """`NAME = (arity, meaning, rule)`."""

    ADD = (2, np.add, "same")
    SUB = (2, np.subtract, "same")
    MUL = (2, np.multiply, "same")
    DIV = (2, _divide, "same")  # checked: an integer division by zero is an error
    FLOORDIV = (2, np.floor_divide, "same")  # of indices, by positive constants
    MOD = (2, np.mod, "same")  # sign of the divisor
    REM = (2, np.fmod, "same")  # sign of the dividend
    POW = (2, _power, "same")
    MIN = (2, np.minimum, "same")  # NaN wins
    MAX = (2, np.maximum, "same")
    NEG = (1, np.negative, "same")
    ABS = (1, np.abs, "same")
    SIGN = (1, np.sign, "same")
    SQRT = (1, np.sqrt, "same")
    RECIPROCAL = (1, np.reciprocal, "same")  # to a unit of the last place; normal numbers, or 0
    EXP = (1, np.exp, "same")
    EXP2 = (1, np.exp2, "same")  # as the reciprocal is
    LOG = (1, np.log, "same")
    SIN = (1, np.sin, "same")
    COS = (1, np.cos, "same")
    TAN = (1, np.tan, "same")
    ASIN = (1, np.arcsin, "same")
    ACOS = (1, np.arccos, "same")
    ATAN = (1, np.arctan, "same")
    SINH = (1, np.sinh, "same")
    COSH = (1, np.cosh, "same")
    TANH = (1, np.tanh, "same")
    ASINH = (1, np.arcsinh, "same")
    ACOSH = (1, np.arccosh, "same")
    ATANH = (1, np.arctanh, "same")
    ERF = (1, lambda x: _erf(x).astype(np.asarray(x).dtype), "same")
    SIGMOID = (1, _sigmoid, "same")
    RATIONAL_SIGMOID = (1, lambda x: _sigmoid(x), "same")  # in the bits of other runtimes
    RATIONAL_TANH = (1, lambda x: np.tanh(x), "same")
    LOG1P = (1, np.log1p, "same")
    EXPM1 = (1, np.expm1, "same")
    FLOOR = (1, np.floor, "same")
    CEIL = (1, np.ceil, "same")
    RINT = (1, np.rint, "same")  # half to even
    TRUNC = (1, np.trunc, "same")
    TF32 = (1, _tf32, "same")  # to 10 bits of mantissa, half away from zero: of tensor cores alone
    ISNAN = (1, np.isnan, "bool")
    ISINF = (1, np.isinf, "bool")
    LT = (2, np.less, "bool")
    LE = (2, np.less_equal, "bool")
    GT = (2, np.greater, "bool")
    GE = (2, np.greater_equal, "bool")
    EQ = (2, np.equal, "bool")
    NE = (2, np.not_equal, "bool")
    AND = (2, np.logical_and, "bool")
    OR = (2, np.logical_or, "bool")
    XOR = (2, np.logical_xor, "bool")
    NOT = (1, np.logical_not, "bool")
    BITAND = (2, np.bitwise_and, "same")
    BITOR = (2, np.bitwise_or, "same")
    BITXOR = (2, np.bitwise_xor, "same")
    BITNOT = (1, np.invert, "same")
    SHL = (2, _shift(np.left_shift), "same")
    SHR = (2, _shift(np.right_shift), "same")
    CHECK = (2, lambda i, n: i, "same")  # i, once it is known that 0 <= i < n; an error otherwise

    arity: int
    meaning: Meaning
    rule: str

    def __init__(self, arity: int, meaning: Meaning, rule: str) -> None:
        self.arity, self.meaning, self.rule = arity, meaning, rule

    def __repr__(self) -> str:
        """The same in every process, because keys on disk are made of it."""
        return f"ScalarOp.{self.name}"


def identity(op: ScalarOp, dtype: DType) -> float | int | bool:
    """The element that changes nothing under `op`; KeyError if `op` is no monoid."""
    match op:
        case ScalarOp.ADD:
            return 0.0 if dtype.is_float else 0
        case ScalarOp.MUL:
            return 1.0 if dtype.is_float else 1
        case ScalarOp.MAX:
            return _lowest(dtype)
        case ScalarOp.MIN:
            return _highest(dtype)
        case ScalarOp.AND:
            return True
        case ScalarOp.OR | ScalarOp.XOR:
            return False
        case _:
            raise KeyError(op)


MONOIDS = frozenset(
    (
        ScalarOp.ADD,
        ScalarOp.MUL,
        ScalarOp.MAX,
        ScalarOp.MIN,
        ScalarOp.AND,
        ScalarOp.OR,
        ScalarOp.XOR,
    )
)


def _lowest(dtype: DType) -> float | int | bool:
    if dtype is DType.BOOL:
        return False
    return -math.inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)


def _highest(dtype: DType) -> float | int | bool:
    if dtype is DType.BOOL:
        return True
    return math.inf if dtype.is_float else int(np.iinfo(dtype.numpy).max)


CHECKS = frozenset((ScalarOp.CHECK, ScalarOp.DIV, ScalarOp.REM, ScalarOp.MOD))
"""Functions that report bad integers: indices out of range, divisions by zero."""
