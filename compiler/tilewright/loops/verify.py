"""What every pass may assume and must leave true. A VerifyError is a bug in this compiler.

* every axis is bound by one loop, every buffer is a parameter or allocated around its use;
* every index has the buffer's rank and lies inside its shape, by interval analysis under the
guards around it;
* operands of a scalar function agree in type, values are stored in the buffer's type;
* iterations of a parallel loop write disjoint elements (or the same value to the same element).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from tilewright.dtypes import DType
from tilewright.errors import VerifyError
from tilewright.loops.affine import Linear, Range, interval, linear
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Select,
    Space,
    Stmt,
    Store,
    Tile,
    Var,
    dtype_of,
    variables,
    walk,
)
from tilewright.loops.scalars import MONOIDS, ScalarOp

Facts = Mapping[Linear, Range]


def verify(kernel: Kernel) -> Kernel:
    """The kernel itself, once it is known to be sound; VerifyError otherwise."""
    _Verifier(kernel).statement(
        kernel.body, {}, {b.name: b for b in kernel.params}, {}, (kernel.name,)
    )
    return kernel


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def statement(
        self,
        s: Stmt,
        ranges: dict[str, Range],
        buffers: dict[str, Buffer],
        facts: Facts,
        path: tuple[str, ...],
    ) -> None:
        match s:
            case For(axis=axis, extent=extent, body=body):
                if axis in ranges:
                    _fail(path, f"axis {axis} shadows an outer axis")
                self.expression(extent, ranges, buffers, facts, path)
                if s.kind is LoopKind.PARALLEL and (why := shared_writes(s)):
                    _fail(path, why)
                top = interval(extent, ranges)[1] - 1
                if top < 0:
                    return  # never runs
                known = _learn_extent(axis, extent, ranges, facts)
                self.statement(
                    body, {**ranges, axis: (0.0, top)}, buffers, known, (*path, f"for {axis}")
                )
            case If(condition=condition, body=body):
                self.boolean(condition, ranges, buffers, facts, path)
                narrowed = learn(condition, ranges, facts)
                self.statement(body, ranges, buffers, narrowed, (*path, "if"))
            case Block(stmts=stmts):
                for t in stmts:
                    self.statement(t, ranges, buffers, facts, path)
            case Alloc(buffer=b, body=body):
                if b.name in buffers or b.space is not Space.LOCAL:
                    _fail(path, f"local buffer {b.name} is defined twice or not local")
                self.statement(body, ranges, {**buffers, b.name: b}, facts, path)
            case Tile(meaning=meaning, acc=acc):
                if acc.name not in buffers:
                    _fail(path, f"the tile's buffer {acc.name} is not in scope")
                self.statement(meaning, ranges, buffers, facts, (*path, "tile"))
            case (
                Store(buffer=b, index=index, value=value)
                | Accumulate(buffer=b, index=index, value=value)
            ):
                self._write(s, b, index, value, ranges, buffers, facts, (*path, f"write {b.name}"))
            case _:
                assert_never(s)

    def _write(
        self,
        s: Store | Accumulate,
        b: Buffer,
        index: tuple[Expr, ...],
        value: Expr,
        ranges: dict[str, Range],
        buffers: dict[str, Buffer],
        facts: Facts,
        path: tuple[str, ...],
    ) -> None:
        if isinstance(s, Accumulate) and s.op not in MONOIDS:
            _fail(path, f"{s.op.name} is no reduction")
        if b.space is Space.GLOBAL and b.name not in self.kernel.outputs:
            _fail(path, "an input is written to")
        self._access(b, index, ranges, buffers, facts, path)
        got = self.expression(value, ranges, buffers, facts, path)
        if got is not b.dtype:
            _fail(path, f"{got.name} is stored to a buffer of {b.dtype.name}")

    def boolean(
        self,
        e: Expr,
        ranges: dict[str, Range],
        buffers: dict[str, Buffer],
        facts: Facts,
        path: tuple[str, ...],
    ) -> None:
        if self.expression(e, ranges, buffers, facts, path) is not DType.BOOL:
            _fail(path, "a condition is not boolean")

    def expression(
        self,
        e: Expr,
        ranges: dict[str, Range],
        buffers: dict[str, Buffer],
        facts: Facts,
        path: tuple[str, ...],
    ) -> DType:
        match e:
            case Const():
                pass
            case Var(name=name):
                if name not in ranges:
                    _fail(path, f"axis {name} is used outside its loop")
            case Load(buffer=b, index=index):
                self._access(b, index, ranges, buffers, facts, (*path, f"read {b.name}"))
            case Cast(arg=arg):
                self.expression(arg, ranges, buffers, facts, path)
            case Select(condition=c, then=then, otherwise=otherwise):
                self.boolean(c, ranges, buffers, facts, path)
                holds, fails = learn(c, ranges, facts), unlearn(c, ranges, facts)
                first = self.expression(then, ranges, buffers, holds, path)
                second = self.expression(otherwise, ranges, buffers, fails, path)
                if first is not second:
                    _fail(path, f"the sides of a select are {first.name} and {second.name}")
            case Apply(op=op, args=args):
                kinds = {self.expression(a, ranges, buffers, facts, path) for a in args}
                if len(kinds) != 1 or len(args) != op.arity:
                    _fail(path, f"{op.name} of {[k.name for k in kinds]} and {len(args)} operands")
            case _:
                assert_never(e)
        return dtype_of(e)

    def _access(
        self,
        b: Buffer,
        index: tuple[Expr, ...],
        ranges: dict[str, Range],
        buffers: dict[str, Buffer],
        facts: Facts,
        path: tuple[str, ...],
    ) -> None:
        if buffers.get(b.name) != b:
            _fail(path, "the buffer is not in scope")
        if len(index) != len(b.shape):
            _fail(path, f"{len(index)} indices for rank {len(b.shape)}")
        for i, n in zip(index, b.shape, strict=True):
            if self.expression(i, ranges, buffers, facts, path) is not DType.I64:
                _fail(path, "an index is not int64")
            low, high = bounds(i, ranges, facts)
            if (low < 0 or high >= n) and high >= low:
                _fail(path, f"index {i} spans [{low:g}, {high:g}], the extent is {n}")


def _fail(path: tuple[str, ...], why: str) -> None:
    raise VerifyError(f"{' > '.join(path)}: {why}")


def bounds(e: Expr, ranges: Mapping[str, Range], facts: Facts) -> Range:
    """The range of an index under what the guards around it say."""
    form = linear(e, ranges)
    spans = [_scaled(_atom_bounds(atom, ranges, facts), c) for atom, c in form.terms]
    low = form.constant + sum(a for a, _ in spans)
    high = form.constant + sum(b for _, b in spans)
    for known, span in facts.items():
        a, b = _multiple_of(form, known, span, spans)
        low, high = max(low, a), min(high, b)
    if facts:
        for atom, c in form.terms:
            a, b = _joined_quotient(form, atom, c, ranges, facts)
            low, high = max(low, a), min(high, b)
    return low, high


def _multiple_of(form: Linear, known: Linear, span: Range, spans: list[Range]) -> Range:
    """The range of the form if it is a multiple of something whose range is known, and a rest."""
    here = dict(form.terms)
    if not known.terms or any(a not in here for a, _ in known.terms):
        return float("-inf"), float("inf")
    first, k = known.terms[0]
    scale, remainder = divmod(here[first], k)
    if remainder or any(here[a] != scale * c for a, c in known.terms):
        return float("-inf"), float("inf")
    inside = {a for a, _ in known.terms}
    rest = [s for (a, _), s in zip(form.terms, spans, strict=True) if a not in inside]
    low, high = _scaled(span, scale)
    shift = form.constant - scale * known.constant
    return low + shift + sum(a for a, _ in rest), high + shift + sum(b for _, b in rest)


def _joined_quotient(
    form: Linear, atom: Expr, c: int, ranges: Mapping[str, Range], facts: Facts
) -> Range:
    """The range of c * (x // d) + c * rest, read as c * ((x + d * rest) // d)."""
    match atom:
        case Apply(op=ScalarOp.FLOORDIV, args=(x, Const(value=d))) if c > 0:
            rest = [(a, k) for a, k in form.terms if a != atom]
            if form.constant % c == 0 and all(k % c == 0 for _, k in rest):
                whole: Expr = x + form.constant // c * int(d)
                for a, k in rest:
                    whole = whole + a * (k // c * int(d))
                if not any(isinstance(n, Apply) and n.op is ScalarOp.FLOORDIV for n, _ in rest):
                    low, high = bounds(whole, ranges, facts)
                    return low // float(d) * c, high // float(d) * c
    return float("-inf"), float("inf")


def _scaled(span: Range, c: int) -> Range:
    return (span[0] * c, span[1] * c) if c > 0 else (span[1] * c, span[0] * c)


def _atom_bounds(atom: Expr, ranges: Mapping[str, Range], facts: Facts) -> Range:
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


def learn(condition: Expr, ranges: Mapping[str, Range], facts: Facts) -> Facts:
    """What is known about index expressions where the condition holds."""
    match condition:
        case Apply(op=ScalarOp.AND, args=(a, b)):
            return learn(b, ranges, learn(a, ranges, facts))
        case Apply(
            op=ScalarOp.LT | ScalarOp.LE | ScalarOp.GT | ScalarOp.GE | ScalarOp.EQ as op,
            args=(a, b),
        ):
            if dtype_of(a) is DType.I64:
                return _learn_comparison(op, a, b, ranges, facts)
    return facts


def unlearn(condition: Expr, ranges: Mapping[str, Range], facts: Facts) -> Facts:
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


def _learn_comparison(
    op: ScalarOp, a: Expr, b: Expr, ranges: Mapping[str, Range], facts: Facts
) -> Facts:
    form = linear(a, ranges)
    low, high = interval(b, ranges)
    upper = {ScalarOp.LT: high - 1, ScalarOp.LE: high, ScalarOp.EQ: high}.get(op, float("inf"))
    lower = {ScalarOp.GT: low + 1, ScalarOp.GE: low, ScalarOp.EQ: low}.get(op, float("-inf"))
    old = facts.get(form, (float("-inf"), float("inf")))
    span = max(old[0], lower), min(old[1], upper)
    return {**facts, form: span, **_learn_dividend(form, span, ranges)}


def _learn_dividend(form: Linear, span: Range, ranges: Mapping[str, Range]) -> Facts:
    """Where x % d lies in [a, b], x lies in [d * least quotient + a, d * greatest quotient + b]."""
    match form.terms:
        case ((Apply(op=ScalarOp.MOD, args=(x, Const(value=d))), 1),):
            low, high = interval(x, ranges)
            a, b = max(span[0] - form.constant, 0.0), min(span[1] - form.constant, float(d) - 1)
            return {linear(x, ranges): (low // d * d + a, high // d * d + b)}
    return {}


def _learn_extent(axis: str, extent: Expr, ranges: Mapping[str, Range], facts: Facts) -> Facts:
    """An axis is less than each operand of a minimum that is its extent."""
    match extent:
        case Apply(op=ScalarOp.MIN, args=args):
            for bound in args:
                form = linear(Var(axis) - bound, ranges)
                facts = {**facts, form: (float("-inf"), -1.0)}
    return facts


def shared_writes(loop: For) -> str | None:
    """Why two iterations of the loop could write different values to one element, or None."""
    if isinstance(loop.extent, Const) and loop.extent.value <= 1:
        return None
    local = {n.buffer.name for n in walk(loop.body) if isinstance(n, Alloc)}
    for n in walk(loop.body):
        if isinstance(n, (Store, Accumulate)) and n.buffer.name not in local:
            if not any(loop.axis in variables(i) for i in n.index):
                return f"parallel axis {loop.axis} writes {n.buffer.name} without indexing by it"
            if isinstance(n, Accumulate) and any(_overlaps(i, loop.axis) for i in n.index):
                name = n.buffer.name
                return f"parallel axis {loop.axis} accumulates into shared elements of {name}"
    return None


def _overlaps(index: Expr, axis: str) -> bool:
    return any(
        isinstance(n, Apply) and n.op is ScalarOp.MIN and axis in variables(n) for n in walk(index)
    )
