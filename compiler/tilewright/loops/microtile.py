"""How a tile steps through memory: what the emitter must know to print a Tile as one call per
depth step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.loops.affine import Linear, Range, linear
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Block,
    Const,
    Expr,
    For,
    Load,
    Select,
    Stmt,
    Store,
    Tile,
    Var,
    variables,
)
from tilewright.loops.locate import offset
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
class Microtile:
    """`a` and `b` are the operands; `base_a`, `base_b` their offsets at the first row, column and
    depth step."""

    a: Load
    b: Load
    base_a: Linear
    base_b: Linear
    row_stride: int
    depth_stride: int
    loops: tuple[For, ...]  # outer depth loops
    inner: For | None  # the depth loop of the micro-kernel
    inside: tuple[Expr, ...]
    window: Window | None


@dataclass(frozen=True)
class Target:
    """Where a tile lies in its buffer: all of it, or `height` x `width` elements from `base` on."""

    height: int
    width: int
    base: Linear
    row_stride: int


def target(tile: Tile, ranges: Mapping[str, Range]) -> Target:
    """The place that the first statement of the meaning fills."""
    assert isinstance(tile.meaning, Block)
    extents: dict[str, int] = {}
    s = tile.meaning.stmts[0]
    while isinstance(s, For):
        extents[s.axis] = int(s.extent.value) if isinstance(s.extent, Const) else 0
        s = s.body
    assert isinstance(s, Store)
    own = [Var(a) for a in (tile.rows, tile.columns) if a]
    if list(s.index) == own:  # blocks at the edge compute whole tiles too
        height, width = ([1] * (2 - len(own)) + list(tile.acc.shape))[-2:]
        return Target(height, width, Linear(()), width)
    form = offset(s.buffer, s.index, ranges)
    height, width = extents.get(tile.rows, 1), extents[tile.columns]
    base = form.without(tile.rows).without(tile.columns)
    return Target(height, width, base, form.coefficient(tile.rows))


def microtile(
    meaning_steps: Stmt, rows: str, columns: str, ranges: Mapping[str, Range], width: int
) -> Microtile | None:
    """The form of a blocked sum of products, or None if its operands are not stepped through
    evenly."""
    depth: list[For] = []
    s = meaning_steps
    while isinstance(s, For):
        if s.axis not in (rows, columns):
            depth.append(s)
        s = s.body
    if (
        not isinstance(s, Accumulate)
        or not isinstance(s.value, Apply)
        or not isinstance(s.value.args[1], Load)
    ):
        return None
    guards, a = _unguarded(s.value.args[0])
    b = s.value.args[1]
    if a is None:
        return None
    inner = depth.pop() if depth else None
    return _form(a, b, guards, tuple(depth), inner, rows, columns, ranges, width)


def _form(
    a: Load,
    b: Load,
    guards: tuple[Expr, ...],
    loops: tuple[For, ...],
    inner: For | None,
    rows: str,
    columns: str,
    ranges: Mapping[str, Range],
    width: int,
) -> Microtile | None:
    k = inner.axis if inner else ""
    at, bt = offset(a.buffer, a.index, ranges), offset(b.buffer, b.index, ranges)
    stepping = {rows, columns, k} - {""}
    if (
        stepping & (at.nonlinear_axes() | bt.nonlinear_axes())
        or at.coefficient(columns)
        or bt.coefficient(rows)
    ):
        return None
    if bt.coefficient(columns) != 1 or (inner and bt.coefficient(k) != width):
        return None
    if any(k in variables(g) or columns in variables(g) for g in guards):
        return None
    base_a = at.without(rows).without(k)
    base_b = bt.without(columns).without(k)
    inside = tuple(g for g in guards if rows not in variables(g))
    moving = [g for g in guards if rows in variables(g)]
    window = None
    if moving:
        window = _window(moving, inside, at, rows, ranges)
        if window is None:
            return None
        base_a = _minus(base_a, window.start, window.column_stride)
    return Microtile(
        a, b, base_a, base_b, at.coefficient(rows), at.coefficient(k), loops, inner, inside, window
    )


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


def _minus(form: Linear, other: Linear, scale: int) -> Linear:
    total: dict[Expr, int] = dict(form.terms)
    for atom, c in other.terms:
        total[atom] = total.get(atom, 0) - c * scale
    kept = tuple((a, c) for a, c in total.items() if c)
    return Linear(kept, form.constant - other.constant * scale)


def _unguarded(e: Expr) -> tuple[tuple[Expr, ...], Load | None]:
    match e:
        case Load():
            return (), e
        case Select(condition=c, then=then):
            guards, load = _unguarded(then)
            return (*_conjuncts(c), *guards), load
    return (), None


def _conjuncts(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Apply(op=ScalarOp.AND, args=(a, b)):
            return (*_conjuncts(a), *_conjuncts(b))
    return (e,)
