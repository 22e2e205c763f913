"""Index arithmetic: linear forms, ranges, and the simplifications that make merged and split
dimensions vanish.

A linear form is sum(coefficient * atom) + constant. Atoms are axes, or whatever else is no sum: a
quotient, a
remainder, a minimum, an index that comes from data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Apply,
    Cast,
    Const,
    Expr,
    Load,
    Select,
    Var,
    dtype_of,
    index_const,
    rewrite,
    variables,
)
from tilewright.loops.scalars import ScalarOp

Range = tuple[float, float]
Ranges = Mapping[str, Range]
UNKNOWN: Range = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class Linear:
    """sum(coefficient * atom) + constant; atoms are distinct, coefficients are not zero."""

    terms: tuple[tuple[Expr, int], ...]
    constant: int = 0

    def coefficient(self, axis: str) -> int:
        """What one step of the axis adds, as far as the axis stands alone in a term."""
        return next((c for a, c in self.terms if isinstance(a, Var) and a.name == axis), 0)

    def without(self, axis: str) -> Linear:
        """The form with the axis at zero."""
        kept = tuple((a, c) for a, c in self.terms if not (isinstance(a, Var) and a.name == axis))
        return Linear(kept, self.constant)

    def nonlinear_axes(self) -> frozenset[str]:
        """Axes that occur inside an atom."""
        inner = (variables(a) for a, _ in self.terms if not isinstance(a, Var))
        return frozenset().union(*inner)


def _combine(a: Linear, b: Linear, scale: int = 1) -> Linear:
    total: dict[Expr, int] = dict(a.terms)
    for atom, c in b.terms:
        total[atom] = total.get(atom, 0) + c * scale
    kept = {atom: c for atom, c in total.items() if c}
    return _rejoin(kept, a.constant + b.constant * scale)


def _rejoin(terms: dict[Expr, int], constant: int) -> Linear:
    """(x // d) * (d * s) + (x % d) * s = x * s."""
    for atom, c in list(terms.items()):
        if isinstance(atom, Apply) and atom.op is ScalarOp.MOD:
            x, d = atom.args
            if not isinstance(d, Const):
                continue
            quotient = Apply(ScalarOp.FLOORDIV, (x, d))
            if terms.get(quotient) == c * int(d.value):
                del terms[atom], terms[quotient]
                whole = linear(x, {})
                for inner, k in whole.terms:
                    terms[inner] = terms.get(inner, 0) + k * c
                return _rejoin({a: k for a, k in terms.items() if k}, constant + whole.constant * c)
    return Linear(tuple(terms.items()), constant)


def linear(e: Expr, ranges: Ranges) -> Linear:
    """The linear form of an index expression; `ranges` of axes decide quotients and remainders."""
    match e:
        case Const(value=v):
            return Linear((), int(v))
        case Apply(op=ScalarOp.ADD, args=(a, b)):
            return _combine(linear(a, ranges), linear(b, ranges))
        case Apply(op=ScalarOp.SUB, args=(a, b)):
            return _combine(linear(a, ranges), linear(b, ranges), -1)
        case Apply(op=ScalarOp.NEG, args=(a,)):
            return _combine(Linear(()), linear(a, ranges), -1)
        case Apply(op=ScalarOp.MUL, args=(a, b)):
            x, y = linear(a, ranges), linear(b, ranges)
            if not y.terms:
                return _combine(Linear(()), x, y.constant)
            if not x.terms:
                return _combine(Linear(()), y, x.constant)
        case Apply(op=ScalarOp.FLOORDIV, args=(a, Const(value=d))):
            return _quotient(linear(a, ranges), int(d), ranges)
        case Apply(op=ScalarOp.MOD, args=(a, Const(value=d))):
            return _remainder(linear(a, ranges), int(d), ranges)
        case Apply(op=ScalarOp.MIN | ScalarOp.MAX, args=(a, b)):
            return _extremum(e, a, b, ranges)
        case Var(name=n) if ranges.get(n) == (0, 0):
            return Linear(())
    return Linear(((_simplify_inside(e, ranges), 1),))


def _simplify_inside(e: Expr, ranges: Ranges) -> Expr:
    """An atom with simplified operands."""
    match e:
        case Apply(op=op, args=args) if op not in (ScalarOp.LT, ScalarOp.LE):
            return (
                Apply(op, tuple(simplify_index(a, ranges) for a in args)) if op in _INDEX_OPS else e
            )
        case Load(buffer=b, index=index):
            return Load(b, tuple(simplify_index(i, ranges) for i in index))
    return e


_INDEX_OPS = frozenset((ScalarOp.CHECK, ScalarOp.MIN, ScalarOp.MAX, ScalarOp.MUL))


def _extremum(e: Apply, a: Expr, b: Expr, ranges: Ranges) -> Linear:
    x, y = interval(a, ranges), interval(b, ranges)
    if x[1] <= y[0]:
        return linear(a if e.op is ScalarOp.MIN else b, ranges)
    if y[1] <= x[0]:
        return linear(b if e.op is ScalarOp.MIN else a, ranges)
    simple = Apply(e.op, (simplify_index(a, ranges), simplify_index(b, ranges)))
    return Linear(((simple, 1),))


def _split(form: Linear, d: int) -> tuple[Linear, Linear]:
    """form = d * first + second, with as much as possible in the first."""
    whole = tuple((a, c // d) for a, c in form.terms if c % d == 0)
    rest = tuple((a, c) for a, c in form.terms if c % d)
    return Linear(whole, form.constant // d), Linear(rest, form.constant % d)


def _quotient(form: Linear, d: int, ranges: Ranges) -> Linear:
    whole, rest = _split(form, d)
    low, high = linear_range(rest, ranges)
    if low >= 0 and high < d:
        return whole
    if (coarse := _coarsened(rest, d, ranges)) is not None:
        unit, inner, _ = coarse
        return _combine(whole, _quotient(inner, d // unit, ranges))
    atom = _divide_again(to_expr(rest), d)
    return _combine(whole, Linear(((atom, 1),)))


def _coarsened(form: Linear, d: int, ranges: Ranges) -> tuple[int, Linear, Linear] | None:
    """form = unit * first + second with 0 <= second < unit, for a unit that divides d.

    Then form // d = first // (d // unit), and form % d = unit * (first % (d // unit)) + second.
    """
    units = sorted({abs(c) for _, c in form.terms if 1 < abs(c) < d and d % abs(c) == 0})
    for unit in reversed(units):
        first, second = _split(form, unit)
        low, high = linear_range(second, ranges)
        if low >= 0 and high < unit:
            return unit, first, second
    return None


def _divide_again(x: Expr, d: int) -> Expr:
    """(y // a) // d = y // (a * d)."""
    match x:
        case Apply(op=ScalarOp.FLOORDIV, args=(y, Const(value=a))):
            return Apply(ScalarOp.FLOORDIV, (y, index_const(int(a) * d)))
    return Apply(ScalarOp.FLOORDIV, (x, index_const(d)))


def _remainder(form: Linear, d: int, ranges: Ranges) -> Linear:
    _, rest = _split(form, d)
    low, high = linear_range(rest, ranges)
    if low >= 0 and high < d:
        return rest
    if (coarse := _coarsened(rest, d, ranges)) is not None:
        unit, first, second = coarse
        return _combine(second, _remainder(first, d // unit, ranges), unit)
    return Linear(((Apply(ScalarOp.MOD, (to_expr(rest), index_const(d))), 1),))


def to_expr(form: Linear) -> Expr:
    """The form as an expression."""
    total: Expr | None = None
    for atom, c in form.terms:
        term = atom if c == 1 else Apply(ScalarOp.MUL, (atom, index_const(c)))
        total = term if total is None else Apply(ScalarOp.ADD, (total, term))
    if total is None:
        return index_const(form.constant)
    return Apply(ScalarOp.ADD, (total, index_const(form.constant))) if form.constant else total


def simplify_index(e: Expr, ranges: Ranges) -> Expr:
    """An equal index expression in canonical form."""
    if isinstance(e, (Const, Var)) and not (isinstance(e, Var) and ranges.get(e.name) == (0, 0)):
        return e
    return to_expr(linear(e, ranges))


def linear_range(form: Linear, ranges: Ranges) -> Range:
    """The least and greatest value of a linear form."""
    low = high = float(form.constant)
    for atom, c in form.terms:
        a, b = interval(atom, ranges)
        low, high = low + min(a * c, b * c), high + max(a * c, b * c)
    return low, high


def interval(e: Expr, ranges: Ranges) -> Range:
    """The least and greatest value of an index expression; infinite where nothing is known."""
    match e:
        case Const(value=v):
            return float(v), float(v)
        case Var(name=n):
            return ranges.get(n, UNKNOWN)
        case Apply(op=ScalarOp.CHECK, args=(_, n)):
            return 0.0, interval(n, ranges)[1] - 1
        case Apply(op=ScalarOp.FLOORDIV, args=(a, Const(value=d))):
            low, high = interval(a, ranges)
            return low // float(d), high // float(d)
        case Apply(op=ScalarOp.MOD, args=(a, Const(value=d))):
            low, high = interval(a, ranges)
            return (low, high) if low >= 0 and high < d else (0.0, float(d) - 1)
        case Apply(op=ScalarOp.MIN, args=(a, b)):
            x, y = interval(a, ranges), interval(b, ranges)
            together = linear_range(_combine(linear(a, ranges), linear(b, ranges)), ranges)
            return min(x[0], y[0]), min(x[1], y[1], together[1] // 2)  # min(a, b) <= (a + b) / 2
        case Apply(op=ScalarOp.MAX, args=(a, b)):
            x, y = interval(a, ranges), interval(b, ranges)
            return max(x[0], y[0]), max(x[1], y[1])
        case Apply(op=ScalarOp.ADD | ScalarOp.SUB | ScalarOp.NEG | ScalarOp.MUL):
            form = linear(e, ranges)
            if form.terms == ((e, 1),):
                return _product_range(e, ranges)
            return linear_range(form, ranges)
        case Select(then=t, otherwise=o):
            x, y = interval(t, ranges), interval(o, ranges)
            return min(x[0], y[0]), max(x[1], y[1])
        case Load(buffer=b) if b.values is not None:
            return float(b.values[0]), float(b.values[1])
        case Cast(dtype=DType.I64, arg=Load() as arg) if dtype_of(arg) is DType.I32:
            return interval(arg, ranges)
    return UNKNOWN


def _product_range(e: Apply, ranges: Ranges) -> Range:
    if e.op is not ScalarOp.MUL:
        return UNKNOWN
    x, y = interval(e.args[0], ranges), interval(e.args[1], ranges)
    products = [p * q for p in x for q in y if p * q == p * q]
    return (min(products), max(products)) if len(products) == 4 else UNKNOWN


def same_everywhere(e: Expr, axes: frozenset[str]) -> bool:
    """Whether e reads none of the axes."""
    return not (variables(e) & axes)


def simplify_loads(node: Expr, ranges: Ranges) -> Expr:
    """An expression with every index in canonical form."""

    def rule(n: object) -> Load | None:
        if isinstance(n, Load):
            index = tuple(simplify_index(i, ranges) for i in n.index)
            return Load(n.buffer, index) if index != n.index else None
        return None

    return rewrite(node, rule)  # type: ignore[arg-type,return-value]
