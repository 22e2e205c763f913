"""How a tile steps through memory: what the emitter must know to print a Tile as one call per
depth step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.dtypes import DType
from tilewright.loops.affine import Linear, Range
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Block,
    Cast,
    Const,
    Expr,
    For,
    Load,
    Stmt,
    Store,
    Tile,
    Var,
    variables,
)
from tilewright.loops.locate import offset
from tilewright.loops.scalars import ScalarOp, identity
from tilewright.loops.window import GuardedRows, guarded_rows, unguarded

QUAD = 4  # bytes that one instruction multiplies and adds up in one lane


@dataclass(frozen=True)
class Microtile:
    """A sum of products, `a` broadcast along the columns and `b` along the rows.

    `base_b` is the offset of b at the first column and depth step, `rows` where a starts.
    """

    a: Load
    b: Load
    rows: GuardedRows
    base_b: Linear
    row_stride: int
    depth_stride: int
    b_stride: int | None  # between the rows of b; None where it is packed
    loops: tuple[For, ...]  # outer depth loops
    inner: For | None  # the depth loop of the micro-kernel
    of_bytes: bool = False  # four bytes at a time, along the depth of both operands


@dataclass(frozen=True)
class ColumnTile:
    """A reduction in which each column reads a column of its own: depthwise convolution, pooling.

    Without `b` it reduces a, otherwise the products of both; b is broadcast along the rows.
    """

    op: ScalarOp
    a: Load
    b: Load | None
    rows: GuardedRows
    base_b: Linear | None
    row_stride: int
    loops: tuple[For, ...]


@dataclass(frozen=True)
class Place:
    """Where a tile lies in its buffer: all of it, or `height` x `width` elements from `base` on."""

    height: int
    width: int
    base: Linear
    row_stride: int


def place_of(tile: Tile, ranges: Mapping[str, Range]) -> Place:
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
        return Place(height, width, Linear(()), width)
    form = offset(s.buffer, s.index, ranges)
    height, width = extents.get(tile.rows, 1), extents[tile.columns]
    base = form.without(tile.rows).without(tile.columns)
    return Place(height, width, base, form.coefficient(tile.rows))


def reads_columns(form: Microtile | ColumnTile) -> bool:
    """Whether operands are read as wide as the tile is: no column of it may be missing."""
    return isinstance(form, ColumnTile) or form.b_stride is not None


def tile_form(
    steps: Stmt, rows: str, columns: str, ranges: Mapping[str, Range], width: int
) -> Microtile | ColumnTile | None:
    """The form of a blocked reduction, or None if its operands are not stepped through evenly."""
    depth: list[For] = []
    s = steps
    while isinstance(s, For):
        if s.axis not in (rows, columns):
            depth.append(s)
        s = s.body
    if not isinstance(s, Accumulate):
        return None
    return _microtile(s, depth, rows, columns, ranges, width) or _column_tile(
        s, depth, rows, columns, ranges
    )


def _microtile(
    s: Accumulate,
    depth: list[For],
    rows: str,
    columns: str,
    ranges: Mapping[str, Range],
    width: int,
) -> Microtile | None:
    match s.value:
        case Apply(op=ScalarOp.MUL, args=(Cast(arg=Load() as x), Cast(arg=Load() as y))):
            return _byte_tile(s, x, y, depth, rows, columns, ranges, width)
        case Apply(op=ScalarOp.MUL, args=(factor, Load() as b)) if s.op is ScalarOp.ADD:
            guards, a = unguarded(factor, 0.0)
        case _:
            return None
    if a is None:
        return None
    innermost = depth[-1].axis if depth else ""
    guarded = any(innermost in variables(g) for g in guards)
    inner = depth[-1] if depth and not guarded else None
    k = inner.axis if inner else ""
    at, bt = offset(a.buffer, a.index, ranges), offset(b.buffer, b.index, ranges)
    stepping = {rows, columns, k} - {""}
    if (
        stepping & (at.nonlinear_axes() | bt.nonlinear_axes())
        or at.coefficient(columns)
        or bt.coefficient(rows)
        or any(columns in variables(g) for g in guards)
    ):
        return None
    if bt.coefficient(columns) != 1:
        return None
    placed = guarded_rows(guards, at, at.without(rows).without(k), rows, ranges)
    packed = not inner or bt.coefficient(k) == width
    if placed is None or (placed.window and not packed):
        return None
    return Microtile(
        a,
        b,
        placed,
        bt.without(columns).without(k),
        at.coefficient(rows),
        at.coefficient(k),
        None if packed else bt.coefficient(k),
        tuple(depth[:-1] if inner else depth),
        inner,
    )


def _byte_tile(
    s: Accumulate,
    a: Load,
    b: Load,
    depth: list[For],
    rows: str,
    columns: str,
    ranges: Mapping[str, Range],
    width: int,
) -> Microtile | None:
    kinds = (s.buffer.dtype, a.buffer.dtype, b.buffer.dtype)
    if s.op is not ScalarOp.ADD or kinds != (DType.I32, DType.U8, DType.I8) or not depth:
        return None
    inner = depth[-1]
    at, bt = offset(a.buffer, a.index, ranges), offset(b.buffer, b.index, ranges)
    base_b = _start_of_quads(bt, inner, columns, width)
    if {rows, columns, inner.axis} & at.nonlinear_axes() or at.coefficient(columns):
        return None
    if base_b is None or rows in _axes_of(base_b) or at.coefficient(inner.axis) != 1:
        return None
    base = GuardedRows(at.without(rows).without(inner.axis), (), None)
    loops = tuple(depth[:-1])
    return Microtile(a, b, base, base_b, at.coefficient(rows), 1, None, loops, inner, True)


def _start_of_quads(form: Linear, inner: For, columns: str, width: int) -> Linear | None:
    """Where b's panel starts, if it holds four steps of the depth, column by column."""
    k, extent = Var(inner.axis), inner.extent
    if not isinstance(extent, Const) or int(extent.value) % QUAD:
        return None
    panel: dict[Expr, int] = {Var(columns): QUAD, k % QUAD: 1}
    panel[k // QUAD] = width * QUAD
    if extent.value == QUAD:
        panel = {Var(columns): QUAD, k: 1}
    terms = dict(form.terms)
    if any(terms.pop(atom, 0) != c for atom, c in panel.items()):
        return None
    left = Linear(tuple(terms.items()), form.constant)
    return None if {columns, inner.axis} & _axes_of(left) else left


def _axes_of(form: Linear) -> frozenset[str]:
    """The axes that a linear form depends on."""
    return frozenset().union(*(variables(a) for a, _ in form.terms))


def _column_tile(
    s: Accumulate, depth: list[For], rows: str, columns: str, ranges: Mapping[str, Range]
) -> ColumnTile | None:
    if s.op not in (ScalarOp.ADD, ScalarOp.MAX, ScalarOp.MIN) or not s.buffer.dtype.is_float:
        return None
    b: Load | None = None
    match s.value:
        case Apply(op=ScalarOp.MUL, args=(factor, Load() as b)) if s.op is ScalarOp.ADD:
            guards, a = unguarded(factor, 0.0)
        case value:
            guards, a = unguarded(value, identity(s.op, s.buffer.dtype))
    if a is None or any(columns in variables(g) for g in guards):
        return None
    if any(operand.buffer.dtype is not s.buffer.dtype for operand in (a, b) if operand):
        return None
    at = offset(a.buffer, a.index, ranges)
    if not _along(at, columns, rows):
        return None
    bt = offset(b.buffer, b.index, ranges) if b else None
    if bt is not None and (not _along(bt, columns, rows) or bt.coefficient(rows)):
        return None
    placed = guarded_rows(guards, at, at.without(rows).without(columns), rows, ranges)
    if placed is None:
        return None
    base_b = bt.without(columns) if bt else None
    return ColumnTile(s.op, a, b, placed, base_b, at.coefficient(rows), tuple(depth))


def _along(form: Linear, columns: str, rows: str) -> bool:
    """Whether neighbouring columns are neighbours in memory, and rows evenly apart."""
    return form.coefficient(columns) == 1 and not {columns, rows} & form.nonlinear_axes()
