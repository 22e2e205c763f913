"""Rows of a tile that may lie outside of what they read: pixels of a convolution's or a pool's
window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.loops.affine import Linear, Range, linear
from tilewright.loops.ir import Apply, Const, Expr, Load, Select, variables
from tilewright.loops.scalars import ScalarOp


@dataclass(frozen=True)
class Window:
    """Rows that may lie outside: row r reads column `start + r * step` of `extent`, if `inside`
    holds."""

    inside: tuple[Expr, ...]
    start: Linear
    step: int
    extent: int
    column_stride: int


@dataclass(frozen=True)
class GuardedRows:
    """Where a tile's rows start in memory, and what must hold for them to count.

    `inside` bears on all rows alike; with a `window`, `base` is the start of the line of columns.
    """

    base: Linear
    inside: tuple[Expr, ...]
    window: Window | None


def guarded_rows(
    guards: Sequence[Expr], at: Linear, base: Linear, rows: str, ranges: Mapping[str, Range]
) -> GuardedRows | None:
    """The rows of an operand at offset `at`, `base` on its first row; None if the guards are no
    window."""
    inside = tuple(g for g in guards if rows not in variables(g))
    moving = [g for g in guards if rows in variables(g)]
    if not moving:
        return GuardedRows(base, inside, None)
    window = _window(moving, inside, at, rows, ranges)
    if window is None:
        return None
    return GuardedRows(minus(base, window.start, window.column_stride), inside, window)


def _window(
    guards: list[Expr], inside: tuple[Expr, ...], at: Linear, rows: str, ranges: Mapping[str, Range]
) -> Window | None:
    """The window of guards 0 <= e and e < extent, all over one linear e."""
    forms: dict[Linear, list[int | None]] = {}
    for g in guards:
        match g:
            case Apply(op=ScalarOp.GE, args=(e, Const(value=0))):
                forms.setdefault(linear(e, ranges), [None])
            case Apply(op=ScalarOp.LT, args=(e, Const(value=n))):
                forms.setdefault(linear(e, ranges), [None])[0] = int(n)
            case _:
                return None
    if len(forms) != 1:
        return None
    ((form, (extent,)),) = forms.items()
    step = form.coefficient(rows)
    if extent is None or step == 0 or rows in form.nonlinear_axes() or at.coefficient(rows) % step:
        return None
    return Window(inside, form.without(rows), step, extent, at.coefficient(rows) // step)


def minus(form: Linear, other: Linear, scale: int) -> Linear:
    """form - scale * other."""
    total: dict[Expr, int] = dict(form.terms)
    for atom, c in other.terms:
        total[atom] = total.get(atom, 0) - c * scale
    kept = tuple((a, c) for a, c in total.items() if c)
    return Linear(kept, form.constant - other.constant * scale)


def unguarded(e: Expr, otherwise: float) -> tuple[tuple[Expr, ...], Load | None]:
    """The conditions around a load where anything else counts as `otherwise`, and the load."""
    match e:
        case Load():
            return (), e
        case Select(condition=c, then=then, otherwise=Const(value=v)) if v == otherwise:
            guards, load = unguarded(then, otherwise)
            return (*conjuncts(c), *guards), load
    return (), None


def conjuncts(e: Expr) -> tuple[Expr, ...]:
    """The conditions that all hold where e does."""
    match e:
        case Apply(op=ScalarOp.AND, args=(a, b)):
            return (*conjuncts(a), *conjuncts(b))
    return (e,)
