"""How kernels for a GPU print quotients and remainders of indices: it has no divider, so by a
product and a shift with a number that the host computes."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.loops.affine import Ranges, interval
from tilewright.loops.ir import Apply, Const, Expr
from tilewright.loops.scalars import ScalarOp

MOST = (1 << 31) - 1
BLOCK = 1 << 14  # positions in a block: how they are divided belongs to the structure
FUNCTIONS = ("quotient", "remainder")

Use = Callable[[str], str]
Lift = Callable[..., str]


def magic_of(divisor: int) -> int:
    """A factor in the low 32 bits and a shift above them:
    x // divisor = ((x * factor >> 32) + x) >> shift for 0 <= x <= MOST."""
    shift = (divisor - 1).bit_length()
    factor = ((1 << 32) * ((1 << shift) - divisor)) // divisor + 1
    return shift << 32 | factor


def divided(
    e: Expr, text: Callable[[Expr], str], ranges: Ranges, use: Use, number: Lift
) -> str | None:
    """A quotient or remainder by a constant as text; None if it is none, or one of numbers that
    may be negative or too large."""
    match e:
        case Apply(op=ScalarOp.FLOORDIV | ScalarOp.MOD as op, args=(x, Const(value=value))):
            d = int(value)
        case _:
            return None
    low, high = interval(x, ranges)
    if low < 0 or high > MOST or not 0 < d <= MOST:
        return None
    if high < BLOCK and d & (d - 1) == 0:
        sign, by = (">>", d.bit_length() - 1) if op is ScalarOp.FLOORDIV else ("&", d - 1)
        return f"({text(x)} {sign} {by})"
    return by_magic(op, text(x), d, use, number)


def by_magic(op: ScalarOp, x: str, d: int, use: Use, number: Lift) -> str:
    """x // d or x % d, of numbers from 0 to MOST."""
    magic = number(magic_of(d), "magic", str(d))
    if op is ScalarOp.FLOORDIV:
        return f"{use('quotient')}({x}, {magic})"
    return f"{use('remainder')}({x}, {number(d, 'divisor', str(d))}, {magic})"
