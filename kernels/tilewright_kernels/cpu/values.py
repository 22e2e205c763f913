"""Numbers under construction: an LLVM builder and a value, with Python's operators.

A formula written on `Number` serves scalars and vectors alike: a scalar one is inlined into a loop
that LLVM vectorises, a vector one works on a register tile. Every float instruction carries the
flag `contract` and no other: Numba's fast-math pass marks the unflagged ones `reassoc`, which would
undo the error-free tricks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

from llvmlite import ir

FLAGS = ("contract",)
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT_BITS = {F16: 16, F32: 32, F64: 64}

Operand = Union["Number", float, int]


def element_type(t: Any) -> Any:
    """The type of one lane."""
    return t.element if isinstance(t, ir.VectorType) else t


def with_element(t: Any, element: Any) -> Any:
    """The type that has as many lanes as `t`, each an `element`."""
    return ir.VectorType(element, t.count) if isinstance(t, ir.VectorType) else element


def constant(t: Any, value: float) -> Any:
    """`value` in every lane."""
    return ir.Constant(t, [value] * t.count if isinstance(t, ir.VectorType) else value)


def suffix(t: Any) -> str:
    """The type as the names of LLVM's intrinsics spell it: f32, v16f32, i64."""
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{suffix(t.element)}"
    return str(t.intrinsic_name)


def call_intrinsic(builder: Any, name: str, result: Any, operands: Sequence[Any]) -> Any:
    """A call of the LLVM intrinsic with this full name."""
    signature = ir.FunctionType(result, [v.type for v in operands])
    return builder.call(builder.module.declare_intrinsic(name, fnty=signature), operands)


@dataclass(frozen=True)
class Number:
    """A float, an integer or a condition, in one lane or many."""

    builder: Any
    value: Any

    @property
    def is_float(self) -> bool:
        return element_type(self.value.type) in FLOAT_BITS

    def of(self, value: Any) -> Number:
        """Another number under construction at the same place."""
        return Number(self.builder, value)

    def like(self, other: Operand) -> Any:
        """The LLVM value of `other`; a plain number takes the type of this one."""
        return other.value if isinstance(other, Number) else constant(self.value.type, other)

    def filled(self, value: float) -> Number:
        """`value` in the type of this number."""
        return self.of(constant(self.value.type, value))

    def call(self, name: str, *others: Operand) -> Number:
        """The intrinsic `llvm.NAME` of one type, applied to this number and others."""
        values = [self.value, *(self.like(o) for o in others)]
        t = self.value.type
        return self.of(call_intrinsic(self.builder, f"llvm.{name}.{suffix(t)}", t, values))

    def _binary(self, name: str, left: Any, right: Any) -> Number:
        if self.is_float:
            return self.of(getattr(self.builder, "f" + name)(left, right, flags=FLAGS))
        return self.of(getattr(self.builder, name)(left, right))

    def __add__(self, other: Operand) -> Number:
        return self._binary("add", self.value, self.like(other))

    def __radd__(self, other: Operand) -> Number:
        return self._binary("add", self.like(other), self.value)

    def __sub__(self, other: Operand) -> Number:
        return self._binary("sub", self.value, self.like(other))

    def __rsub__(self, other: Operand) -> Number:
        return self._binary("sub", self.like(other), self.value)

    def __mul__(self, other: Operand) -> Number:
        return self._binary("mul", self.value, self.like(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Number:
        return self._binary("div", self.value, self.like(other))

    def __rtruediv__(self, other: Operand) -> Number:
        return self._binary("div", self.like(other), self.value)

    def __neg__(self) -> Number:
        if self.is_float:
            return self.of(self.builder.fneg(self.value, flags=FLAGS))
        return 0 - self

    def __and__(self, other: Operand) -> Number:
        return self.of(self.builder.and_(self.value, self.like(other)))

    def __or__(self, other: Operand) -> Number:
        return self.of(self.builder.or_(self.value, self.like(other)))

    def __xor__(self, other: Operand) -> Number:
        return self.of(self.builder.xor(self.value, self.like(other)))

    def __lshift__(self, other: Operand) -> Number:
        return self.of(self.builder.shl(self.value, self.like(other)))

    def __rshift__(self, other: Operand) -> Number:
        """Of a signed integer."""
        return self.of(self.builder.ashr(self.value, self.like(other)))

    def compare(self, relation: str, other: Operand) -> Number:
        """A condition; false if either side is NaN. Integers are signed."""
        b, right = self.builder, self.like(other)
        if self.is_float:
            return self.of(b.fcmp_ordered(relation, self.value, right, flags=FLAGS))
        return self.of(b.icmp_signed(relation, self.value, right))

    def __lt__(self, other: Operand) -> Number:
        return self.compare("<", other)

    def __le__(self, other: Operand) -> Number:
        return self.compare("<=", other)

    def __gt__(self, other: Operand) -> Number:
        return self.compare(">", other)

    def __ge__(self, other: Operand) -> Number:
        return self.compare(">=", other)

    def eq(self, other: Operand) -> Number:
        return self.compare("==", other)

    def is_nan(self) -> Number:
        return self.of(self.builder.fcmp_unordered("uno", self.value, self.value, flags=FLAGS))

    def choose(self, then: Operand, otherwise: Number) -> Number:
        """`then` where this condition holds."""
        return self.of(self.builder.select(self.value, otherwise.like(then), otherwise.value))

    def fma(self, factor: Operand, addend: Operand) -> Number:
        """self * factor + addend, rounded once where the processor can and twice where not."""
        return self.call("fmuladd", factor, addend)

    def polynomial(self, coefficients: Sequence[float]) -> Number:
        """Horner's rule, highest power first."""
        result = self.filled(coefficients[0])
        for c in coefficients[1:]:
            result = result.fma(self, c)
        return result

    def at_least(self, low: Operand) -> Number:
        """The larger one; NaN stays NaN. One instruction on x86."""
        return (self < low).choose(low, self)

    def at_most(self, high: Operand) -> Number:
        """The smaller one; NaN stays NaN."""
        return (self > high).choose(high, self)

    def magnitude(self) -> Number:
        return self.call("fabs")

    def sqrt(self) -> Number:
        return self.call("sqrt")

    def with_sign_of(self, other: Number) -> Number:
        """This magnitude with the sign of `other`."""
        return self.call("copysign", other)

    def bits(self) -> Number:
        """A float's bit pattern, as an integer of the same width."""
        t = self.value.type
        integer = ir.IntType(FLOAT_BITS[element_type(t)])
        return self.of(self.builder.bitcast(self.value, with_element(t, integer)))

    def as_float(self) -> Number:
        """The float whose bit pattern this integer is; the opposite of `bits`."""
        t = self.value.type
        width = element_type(t).width
        [float_type] = [f for f, bits in FLOAT_BITS.items() if bits == width]
        return self.of(self.builder.bitcast(self.value, with_element(t, float_type)))

    def to_float(self, element: Any) -> Number:
        """A signed integer's value."""
        return self.of(self.builder.sitofp(self.value, with_element(self.value.type, element)))

    def widen(self) -> Number:
        """float32 to float64."""
        return self.of(self.builder.fpext(self.value, with_element(self.value.type, F64)))

    def narrow(self) -> Number:
        """float64 to float32, rounded to the nearest."""
        return self.of(self.builder.fptrunc(self.value, with_element(self.value.type, F32)))

    def low_bits(self, width: int) -> Number:
        """An integer's lowest bits."""
        t = with_element(self.value.type, ir.IntType(width))
        return self.of(self.builder.trunc(self.value, t))
