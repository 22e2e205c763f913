"""What the guards around an expression say about the values of its indices."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tilewright.dtypes import DType
from tilewright.loops.affine import UNKNOWN, Linear, Range, Ranges, interval, linear, linear_range
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Const,
    Expr,
    Load,
    Node,
    Select,
    Store,
    Var,
    children,
    dtype_of,
    index_const,
    walk,
)
from tilewright.loops.scalars import ScalarOp

Facts = Mapping[Linear, Range]


def contradictory(facts: Facts) -> bool:
    """Whether the facts exclude each other, so that what they guard is never evaluated."""
    return any(low > high for low, high in facts.values())


def bounds(e: Expr, ranges: Ranges, facts: Facts) -> Range:
    """The range of an index under what the guards around it say."""
    return linear_bounds(linear(e, ranges), ranges, facts)


def linear_bounds(form: Linear, ranges: Ranges, facts: Facts) -> Range:
    """The range of a linear form under what the guards around it say."""
    spans = [_scaled(_atom_bounds(atom, ranges, facts), c) for atom, c in form.terms]
    low = form.constant + sum(a for a, _ in spans)
    high = form.constant + sum(b for _, b in spans)
    for known, span in facts.items():
        for a, b in (
            _multiple_of(form, known, span, ranges, facts),
            _part_of(form, known, span, ranges, facts),
        ):
            low, high = max(low, a), min(high, b)
    if facts:
        for atom, c in form.terms:
            a, b = _joined_quotient(form, atom, c, ranges, facts)
            low, high = max(low, a), min(high, b)
    return low, high


def _multiple_of(form: Linear, known: Linear, span: Range, ranges: Ranges, facts: Facts) -> Range:
    """The range of the form if it is a multiple of something whose range is known, and a rest."""
    here = dict(form.terms)
    if not known.terms or any(a not in here for a, _ in known.terms):
        return UNKNOWN
    first, k = known.terms[0]
    scale, remainder = divmod(here[first], k)
    if remainder or any(here[a] != scale * c for a, c in known.terms):
        return UNKNOWN
    inside = {a for a, _ in known.terms}
    rest = Linear(tuple(t for t in form.terms if t[0] not in inside))
    low, high = _scaled(span, scale)
    shift = form.constant - scale * known.constant
    a, b = linear_bounds(rest, ranges, facts) if rest.terms else (0.0, 0.0)
    return low + shift + a, high + shift + b


def _part_of(form: Linear, known: Linear, span: Range, ranges: Ranges, facts: Facts) -> Range:
    """The range of the form if something whose range is known is a multiple of a part of it, and
    a rest."""
    there = dict(known.terms)
    scales = {there[a] // c for a, c in form.terms if a in there and there[a] % c == 0}
    low, high = UNKNOWN
    for scale in scales:
        if scale < 1:
            continue
        part = [(a, c) for a, c in form.terms if there.get(a) == scale * c]
        inside = {a for a, _ in part}
        other = Linear(tuple(t for t in known.terms if t[0] not in inside), known.constant)
        rest = Linear(tuple(t for t in form.terms if t[0] not in inside))
        if not other.terms and scale == 1 and not rest.terms:
            continue  # a multiple of it, as above
        a, b = linear_range(other, ranges)
        least, most = (span[0] - b) / scale, (span[1] - a) / scale
        least = math.ceil(least) if math.isfinite(least) else least
        most = math.floor(most) if math.isfinite(most) else most
        smaller = {k: v for k, v in facts.items() if k != known}
        p, q = linear_bounds(rest, ranges, smaller) if rest.terms else (0.0, 0.0)
        low, high = max(low, least + p + form.constant), min(high, most + q + form.constant)
    return low, high


def _joined_quotient(form: Linear, atom: Expr, c: int, ranges: Ranges, facts: Facts) -> Range:
    """The range of c * (x // d) + c * rest, read as c * ((x + d * rest) // d)."""
    match atom:
        case Apply(op=ScalarOp.FLOORDIV, args=(x, Const(value=d))) if c > 0:
            rest = [(a, k) for a, k in form.terms if a != atom]
            if form.constant % c == 0 and all(k % c == 0 for _, k in rest):
                whole: Expr = x + form.constant // c * int(d)
                for a, k in rest:
                    whole = whole + a * (k // c * int(d))
                low, high = bounds(whole, ranges, facts)
                return low // float(d) * c, high // float(d) * c
    return UNKNOWN


def _scaled(span: Range, c: int) -> Range:
    return (span[0] * c, span[1] * c) if c > 0 else (span[1] * c, span[0] * c)


def _atom_bounds(atom: Expr, ranges: Ranges, facts: Facts) -> Range:
    low, high = interval(atom, ranges)
    for known, (a, b) in facts.items():
        if known.terms == ((atom, 1),):
            low, high = max(low, a - known.constant), min(high, b - known.constant)
    match atom:
        case Apply(op=ScalarOp.FLOORDIV, args=(x, Const(value=d))) if facts:
            a, b = bounds(x, ranges, facts)
            low, high = max(low, a // float(d)), min(high, b // float(d))
        case Apply(op=ScalarOp.MOD, args=(x, Const(value=d))) if facts:
            a, b = bounds(x, ranges, facts)
            if a >= 0 and b < d:
                low, high = max(low, a), min(high, b)
        case Apply(op=ScalarOp.MIN | ScalarOp.MAX as op, args=(x, y)) if facts:
            p, q = bounds(x, ranges, facts), bounds(y, ranges, facts)
            pick = min if op is ScalarOp.MIN else max
            low, high = max(low, pick(p[0], q[0])), min(high, pick(p[1], q[1]))
    return low, high


def learn(condition: Expr, ranges: Ranges, facts: Facts) -> Facts:
    """What is known about index expressions where the condition holds."""
    match condition:
        case Apply(op=ScalarOp.AND, args=(a, b)):
            return learn(b, ranges, learn(a, ranges, facts))
        case Apply(op=ScalarOp.NOT, args=(a,)):
            return unlearn(a, ranges, facts)
        case Apply(
            op=ScalarOp.LT | ScalarOp.LE | ScalarOp.GT | ScalarOp.GE | ScalarOp.EQ as op,
            args=(a, b),
        ):
            if dtype_of(a) is DType.I64:
                return _learn_comparison(op, a, b, ranges, facts)
    return facts


def unproven(s: Node, ranges: Ranges, facts: Facts) -> list[Expr]:
    """What must hold so that the indices of a statement, choices apart, are inside their buffers,
    as far as the facts do not say it."""
    found: dict[Expr, None] = {}
    if isinstance(s, (Load, Store, Accumulate)):
        for i, n in zip(s.index, s.buffer.shape, strict=True):
            high = bounds(i, ranges, facts)[1]
            if high >= n and not any(isinstance(m, Load) for m in walk(i)):
                found[Apply(ScalarOp.LT, (i, index_const(n)))] = None
    below = (s.condition,) if isinstance(s, Select) else children(s)
    for c in below:
        found.update(dict.fromkeys(unproven(c, ranges, facts)))
    return list(found)


def unlearn(condition: Expr, ranges: Ranges, facts: Facts) -> Facts:
    """What is known about index expressions where the condition does not hold."""
    match condition:
        case Apply(op=ScalarOp.OR, args=(a, b)):
            return unlearn(b, ranges, unlearn(a, ranges, facts))
        case Apply(op=ScalarOp.NOT, args=(a,)):
            return learn(a, ranges, facts)
        case Apply(op=op, args=(a, b)) if op in _OPPOSITE and dtype_of(a) is DType.I64:
            return _learn_comparison(_OPPOSITE[op], a, b, ranges, facts)
    return facts


_OPPOSITE = {
    ScalarOp.LT: ScalarOp.GE,
    ScalarOp.LE: ScalarOp.GT,
    ScalarOp.GT: ScalarOp.LE,
    ScalarOp.GE: ScalarOp.LT,
}


def _learn_comparison(op: ScalarOp, a: Expr, b: Expr, ranges: Ranges, facts: Facts) -> Facts:
    form = linear(a, ranges)
    low, high = interval(b, ranges)
    upper = {ScalarOp.LT: high - 1, ScalarOp.LE: high, ScalarOp.EQ: high}.get(op, float("inf"))
    lower = {ScalarOp.GT: low + 1, ScalarOp.GE: low, ScalarOp.EQ: low}.get(op, float("-inf"))
    old = facts.get(form, linear_range(form, ranges))
    span = max(old[0], lower), min(old[1], upper)
    known = {**facts, form: span}
    for other, (low, high) in _learn_dividend(form, span, ranges).items():
        old = known.get(other, (low, high))
        known[other] = max(old[0], low), min(old[1], high)
    return known


def _learn_dividend(form: Linear, span: Range, ranges: Ranges) -> Facts:
    """Where x % d lies in [a, b], x lies in [d * least quotient + a, d * greatest quotient + b];
    k * (x % d) + rest is (k * x + rest) % (k * d) if 0 <= rest < k.
    Where rest + x // d lies in [a, b], d * rest + x lies in [d * a, d * b + d - 1]."""
    match [(a, c) for a, c in form.terms if isinstance(a, Apply) and a.op is ScalarOp.MOD]:
        case [(Apply(args=(x, Const(value=d))) as atom, k)] if k > 0:
            others = tuple(t for t in form.terms if t[0] != atom)
            least, most = linear_range(Linear(others), ranges)
            if least >= 0 and most < k:
                return _learn_multiple(x * k, others, int(d) * k, form.constant, span, ranges)
    quotients = [(a, c) for a, c in form.terms if _is_quotient(a)]
    match quotients:
        case [(Apply(args=(x, Const(value=d))) as atom, 1)]:
            whole: Expr = x + form.constant * int(d)
            for other, c in form.terms:
                whole = whole if other == atom else whole + other * (c * int(d))
            return {linear(whole, ranges): (span[0] * d, span[1] * d + d - 1)}
    return {}


def _learn_multiple(
    whole: Expr,
    others: tuple[tuple[Expr, int], ...],
    d: int,
    constant: float,
    span: Range,
    ranges: Ranges,
) -> Facts:
    """Where (whole + others) % d + constant lies in the span."""
    for other, c in others:
        whole = whole + other * c
    low, high = interval(whole, ranges)
    a, b = max(span[0] - constant, 0.0), min(span[1] - constant, float(d) - 1)
    return {linear(whole, ranges): (low // d * d + a, high // d * d + b)}


def _is_quotient(e: Expr) -> bool:
    return isinstance(e, Apply) and e.op is ScalarOp.FLOORDIV and isinstance(e.args[1], Const)


def learn_extent(axis: str, extent: Expr, ranges: Ranges, facts: Facts) -> Facts:
    """An axis is less than each operand of a minimum that is its extent."""
    match extent:
        case Apply(op=ScalarOp.MIN, args=args):
            for bound in args:
                form = linear(Var(axis) - bound, ranges)
                facts = {**facts, form: (float("-inf"), -1.0)}
    return facts
