"""Arithmetic on integers of one type, in the type's own width: results wrap, as in NumPy.

Python's operators on narrow integers are 64 bits wide in Numba, and mixing uint64 with int64 gives
a float; these functions keep the operands' type, so vectors stay narrow too. None has undefined
results: division by zero gives 0, the smallest integer divided by -1 wraps, a shift by the width or
more gives 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cpu.intrinsics import intrinsic


@dataclass(frozen=True)
class Integers:
    """The LLVM operations for one integer type."""

    builder: Any
    type: Any
    signed: bool

    def constant(self, value: int) -> Any:
        return ir.Constant(self.type, value)

    def compare(self, relation: str, a: Any, b: Any) -> Any:
        compare = self.builder.icmp_signed if self.signed else self.builder.icmp_unsigned
        return compare(relation, a, b)

    def is_zero(self, a: Any) -> Any:
        return self.compare("==", a, self.constant(0))

    def is_minus_one(self, a: Any) -> Any:
        """False for unsigned types."""
        return (
            self.compare("==", a, self.constant(-1))
            if self.signed
            else ir.Constant(ir.IntType(1), 0)
        )

    def divide_safely(self, a: Any, b: Any) -> tuple[Any, Any]:
        """(quotient, remainder), truncating; by 0 it is (0, 0), by -1 (-a, 0)."""
        select, one = self.builder.select, self.constant(1)
        zero, minus = self.is_zero(b), self.is_minus_one(b)
        divisor = select(self.builder.or_(zero, minus), one, b)
        divide = self.builder.sdiv if self.signed else self.builder.udiv
        quotient = divide(a, divisor)
        rest = self.builder.sub(a, self.builder.mul(quotient, divisor))
        quotient = select(minus, self.negate(a), select(zero, self.constant(0), quotient))
        return quotient, rest

    def negate(self, a: Any) -> Any:
        return self.builder.sub(self.constant(0), a)

    def floors(self, rest: Any, b: Any) -> Any:
        """Whether floor division is one less than truncating division that left `rest`."""
        opposite = self.compare("<", self.builder.xor(rest, b), self.constant(0))
        return self.builder.and_(self.builder.not_(self.is_zero(rest)), opposite)


Operation = Callable[..., Any]


def _add(n: Integers, a: Any, b: Any) -> Any:
    return n.builder.add(a, b)


def _subtract(n: Integers, a: Any, b: Any) -> Any:
    return n.builder.sub(a, b)


def _multiply(n: Integers, a: Any, b: Any) -> Any:
    return n.builder.mul(a, b)


def _negate(n: Integers, a: Any) -> Any:
    return n.negate(a)


def _invert(n: Integers, a: Any) -> Any:
    return n.builder.not_(a)


def quotient_of(n: Integers, a: Any, b: Any) -> Any:
    return n.divide_safely(a, b)[0]


def remainder_of(n: Integers, a: Any, b: Any) -> Any:
    return n.divide_safely(a, b)[1]


def _floor_divide(n: Integers, a: Any, b: Any) -> Any:
    quotient, rest = n.divide_safely(a, b)
    return (
        n.builder.sub(quotient, n.builder.zext(n.floors(rest, b), n.type)) if n.signed else quotient
    )


def floor_modulo_of(n: Integers, a: Any, b: Any) -> Any:
    _, rest = n.divide_safely(a, b)
    return n.builder.select(n.floors(rest, b), n.builder.add(rest, b), rest) if n.signed else rest


def _absolute(n: Integers, a: Any) -> Any:
    return n.builder.select(n.compare("<", a, n.constant(0)), n.negate(a), a)


def _sign(n: Integers, a: Any) -> Any:
    positive = n.builder.zext(n.compare(">", a, n.constant(0)), n.type)
    return n.builder.select(n.compare("<", a, n.constant(0)), n.constant(-1), positive)


def _minimum(n: Integers, a: Any, b: Any) -> Any:
    return n.builder.select(n.compare("<", a, b), a, b)


def _maximum(n: Integers, a: Any, b: Any) -> Any:
    return n.builder.select(n.compare(">", a, b), a, b)


def _shift(n: Integers, instruction: Operation, a: Any, count: Any) -> Any:
    """A count outside of [0, width) would be undefined."""
    inside = n.builder.icmp_unsigned("<", count, n.constant(n.type.width))
    shifted = instruction(a, n.builder.select(inside, count, n.constant(0)))
    return n.builder.select(inside, shifted, n.constant(0))


def _shift_left(n: Integers, a: Any, count: Any) -> Any:
    return _shift(n, n.builder.shl, a, count)


def _shift_right(n: Integers, a: Any, count: Any) -> Any:
    return _shift(n, n.builder.ashr if n.signed else n.builder.lshr, a, count)


def _power(n: Integers, base: Any, exponent: Any) -> Any:
    """By squaring. A negative exponent gives 0, unless the base is 1 or -1."""
    b = n.builder
    before = b.block
    head, body, end = (b.append_basic_block(f"power.{part}") for part in ("head", "body", "end"))
    b.branch(head)
    b.position_at_end(head)
    result, square, left = (b.phi(n.type) for _ in range(3))
    # Powers of 1 and -1 depend on the lowest bit only, so a negative exponent may be used as it is.
    for phi, start in zip((result, square, left), (n.constant(1), base, exponent), strict=True):
        phi.add_incoming(start, before)
    b.cbranch(b.not_(n.is_zero(left)), body, end)
    b.position_at_end(body)
    odd = b.trunc(left, ir.IntType(1))
    result.add_incoming(b.select(odd, b.mul(result, square), result), body)
    square.add_incoming(b.mul(square, square), body)
    left.add_incoming(b.lshr(left, n.constant(1)), body)
    b.branch(head)
    b.position_at_end(end)
    if not n.signed:
        return result
    unit = b.or_(n.is_minus_one(base), n.compare("==", base, n.constant(1)))
    vanishes = b.and_(n.compare("<", exponent, n.constant(0)), b.not_(unit))
    return b.select(vanishes, n.constant(0), result)


def integers_of(builder: Any, numba_type: Any) -> Integers:
    """The operations for a Numba integer type."""
    return Integers(builder, ir.IntType(numba_type.bitwidth), numba_type.signed)


def check_same(a: Any, b: Any) -> None:
    """Raises Numba's TypingError unless both are the same integer type."""
    if a != b or not isinstance(a, types.Integer):
        raise TypingError(f"an integer operation on {a} and {b}: convert one of them")


def _one_argument(operation: Operation) -> Any:
    @intrinsic
    def function(typing: Any, a: Any) -> Any:
        check_same(a, a)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return operation(integers_of(builder, a), *values)

        return a(a), emit

    return function


def _two_arguments(operation: Operation) -> Any:
    @intrinsic
    def function(typing: Any, a: Any, b: Any) -> Any:
        check_same(a, b)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return operation(integers_of(builder, a), *values)

        return a(a, b), emit

    return function


add, subtract, multiply = _two_arguments(_add), _two_arguments(_subtract), _two_arguments(_multiply)
negate, invert = _one_argument(_negate), _one_argument(_invert)
divide, remainder = _two_arguments(quotient_of), _two_arguments(remainder_of)
floor_divide, floor_modulo = _two_arguments(_floor_divide), _two_arguments(floor_modulo_of)
absolute, sign = _one_argument(_absolute), _one_argument(_sign)
minimum, maximum = _two_arguments(_minimum), _two_arguments(_maximum)
shift_left, shift_right = _two_arguments(_shift_left), _two_arguments(_shift_right)
power = _two_arguments(_power)
