"""Tile statements as source: the loops over the outer depth axes around one call per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from tilewright.codegen.spelling import ACCUMULATE, ADD_PRODUCT, FLOAT_FUNCTIONS, SUFFIX
from tilewright.dtypes import DType
from tilewright.loops.affine import Linear, Range
from tilewright.loops.bytetile import ByteTile, byte_tile
from tilewright.loops.ir import (
    Alloc,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    Load,
    Space,
    Stmt,
    Store,
    Tile,
    Var,
    index_const,
)
from tilewright.loops.locate import offset
from tilewright.loops.microtile import ColumnTile, Microtile, Place, place_of, tile_form
from tilewright.loops.window import GuardedRows
from tilewright_kernels.cpu.machine import machine


class Printer(Protocol):
    """What the emitter of the rest of a kernel offers."""

    def use(self, name: str) -> str: ...
    def expr(self, e: Expr) -> str: ...
    def axis(self, axis: str) -> str: ...
    def extent(self, s: For, extent: Expr) -> str: ...
    def linear(self, form: Linear, owner: str | None) -> str: ...
    def memory(self, b: Buffer) -> tuple[str, str | None]: ...
    def number(self, value: int, *key: str) -> str: ...


@dataclass(frozen=True)
class Target:
    """Where a tile goes: a pointer as text, and the elements between its rows unless they are those
    of the tile's own buffer."""

    name: str
    pointer: str
    row_stride: int | None = None


def print_tile(
    printer: Printer, s: Tile, ranges: Mapping[str, Range], target: Target
) -> list[str] | None:
    """The lines that fill the target; None if the machine's vectors do not divide the tile's
    width."""
    assert isinstance(s.meaning, Block)
    place, steps = place_of(s, ranges), s.meaning.stmts[1]
    lanes = machine().lanes(s.acc.dtype.bits)
    if place.width % lanes:
        return None
    if target.row_stride is None:
        target = replace(target, row_stride=place.row_stride)
    if bytes_form := byte_tile(s, steps, ranges, place.width):
        return [_byte_product(printer, bytes_form, place, target)]
    form = tile_form(steps, s.rows, s.columns, ranges, place.width)
    assert form is not None, "checked by Tensorize"
    if isinstance(form, Microtile) and _is_panel(form, place.width // lanes):
        return [_panel_product(printer, form, place, target, place.width // lanes)]
    return _on_registers(printer, s, form, place, target)


def _is_panel(form: Microtile, vectors: int) -> bool:
    """Whether the product is a plain one with a panel wider than the tiles of matmuls."""
    plain = form.rows.window is None and not form.loops and not form.rows.inside
    return plain and vectors > 2 and form.b_stride is None and not form.of_bytes


def _on_registers(
    printer: Printer, s: Tile, form: Microtile | ColumnTile, place: Place, target: Target
) -> list[str]:
    assert isinstance(s.meaning, Block)
    kind, lanes = SUFFIX[s.acc.dtype], machine().lanes(s.acc.dtype.bits)
    size, name = f"{place.height}, {place.width // lanes}", f"tile_{target.name}"
    if isinstance(form, Microtile):
        start = f"{printer.use('zeros_' + kind)}({size})"
        lines = _product_step(printer, form, name, place.width)
    else:
        first = _initial(printer, s.meaning.stmts[0])
        start = f"{printer.use('full_' + kind)}({size}, {first})"
        lines = _column_step(printer, form, name)
    for n in reversed(form.loops):
        count = printer.extent(n, n.extent)
        lines = [f"for {printer.axis(n.axis)} in range({count}):", *indent(lines)]
    store = f"{printer.use('store')}({name}, {_at(printer, place, target)}, {target.row_stride})"
    return [f"{name} = {start}", *lines, store]


def _at(printer: Printer, place: Place, target: Target) -> str:
    """The pointer to the first element of the tile."""
    if not place.base.terms and not place.base.constant:
        return target.pointer
    return f"{printer.use('offset')}({target.pointer}, {printer.linear(place.base, None)})"


def _byte_product(printer: Printer, form: ByteTile, place: Place, target: Target) -> str:
    vectors = place.width // machine().lanes(DType.I32.bits)
    b = _base(printer, form.b.buffer, form.base_b)
    a = _base(printer, form.a.buffer, form.base_a)
    at = _at(printer, place, target)
    sizes = f"{place.height}, {vectors}, {at}, {target.row_stride}"
    groups = printer.extent(form.groups, form.groups.extent)
    return f"{printer.use('byte_product')}({sizes}, {a}, {form.row_stride}, {b}, {groups})"


def _panel_product(
    printer: Printer, form: Microtile, place: Place, target: Target, vectors: int
) -> str:
    """A product with a panel that may be too large for a tile, or too small to keep busy."""
    depth = printer.extent(form.inner, form.inner.extent) if form.inner else "1"
    b = _base(printer, form.b.buffer, form.base_b)
    a = _base(printer, form.a.buffer, form.rows.base)
    steps = f"{a}, {form.row_stride}, {form.depth_stride}, {b}, {depth}"
    at = _at(printer, place, target)
    sizes = f"{place.height}, {vectors}, {at}, {target.row_stride}"
    return f"{printer.use('panel_product')}({sizes}, {steps})"


def print_copied_tile(
    printer: Printer, s: Alloc, name: str, ranges: Mapping[str, Range]
) -> list[str] | None:
    """A tile whose whole result is copied somewhere, stored right there; None if that is not what
    the statement does."""
    match s.body:
        case Block(stmts=(Tile() as tile, For() as done)) if tile.acc is s.buffer:
            store = _whole_copy(tile, done)
        case _:
            return None
    if store is None:
        return None
    at = offset(store.buffer, store.index, ranges)
    if at.coefficient(_innermost(done)) != 1 or {tile.rows, tile.columns} & at.nonlinear_axes():
        return None
    base = at.without(tile.rows).without(tile.columns)
    pointer = _base(printer, store.buffer, base)
    return print_tile(printer, tile, ranges, Target(name, pointer, at.coefficient(tile.rows)))


def _innermost(s: For) -> str:
    return _innermost(s.body) if isinstance(s.body, For) else s.axis


def _whole_copy(tile: Tile, s: Stmt) -> Store | None:
    """The store of every element of the tile as it is, if the loops do nothing else."""
    extents = tile.acc.shape if tile.rows else tile.acc.shape[-1:]
    axes = (tile.rows, tile.columns) if tile.rows else (tile.columns,)
    for axis, extent in zip(axes, extents, strict=True):
        if not isinstance(s, For) or s.axis != axis or s.extent != index_const(extent):
            return None
        s = s.body
    if not isinstance(s, Store) or s.buffer.dtype is not tile.acc.dtype:
        return None
    return s if s.value == Load(tile.acc, tuple(Var(a) for a in axes)) else None


def _initial(printer: Printer, s: Stmt) -> str:
    while isinstance(s, For):
        s = s.body
    assert isinstance(s, Store) and isinstance(s.value, Const)
    return printer.expr(s.value)


def _product_step(printer: Printer, form: Microtile, name: str, width: int) -> list[str]:
    if form.of_bytes:
        assert form.inner is not None
        extent = printer.extent(form.inner, form.inner.extent)
        panel = _base(printer, form.b.buffer, form.base_b)
        return _step(printer, form, name, "matmul_bytes", f"{panel}, {extent}")
    depth = printer.extent(form.inner, form.inner.extent) if form.inner else "1"
    b = _base(printer, form.b.buffer, form.base_b)
    rest = f"{form.depth_stride}, {b}"
    if form.b_stride is not None:
        return _step(printer, form, name, "matmul_rows", f"{rest}, {form.b_stride}, {depth}")
    near = form.b.buffer.space is Space.LOCAL
    if form.inner is None or near or form.rows.window is not None or not form.row_stride:
        return _step(printer, form, name, "matmul", f"{rest}, {depth}")
    ahead = f"{printer.use('offset')}({b}, {depth} * {width})"
    return _step(printer, form, name, "matmul_prefetch", f"{rest}, {depth}, {ahead}, {width}")


def _column_step(printer: Printer, form: ColumnTile, name: str) -> list[str]:
    if form.b is None or form.base_b is None:
        word = ACCUMULATE.get(form.op) or FLOAT_FUNCTIONS[form.op]
        return _step(printer, form, name, f"{word}_columns", "")
    factors = _base(printer, form.b.buffer, form.base_b)
    return _step(printer, form, name, f"{ADD_PRODUCT}_columns", factors)


def _step(
    printer: Printer, form: Microtile | ColumnTile, name: str, function: str, rest: str
) -> list[str]:
    """One call; `rest` are its arguments after those that say where the rows are."""
    placed = form.rows
    inside = " & ".join(printer.expr(g) for g in placed.inside)
    a = _base(printer, form.a.buffer, placed.base)
    if placed.window is None:
        arguments = ", ".join(filter(None, (name, a, str(form.row_stride), rest)))
        call = f"{name} = {printer.use(function)}({arguments})"
        return [f"if {inside}:", *indent([call])] if inside else [call]
    place = f"{inside or 'True'}, {_columns(printer, placed)}"
    arguments = ", ".join(filter(None, (name, a, place, rest)))
    return [f"{name} = {printer.use(function + '_window')}({arguments})"]


def _columns(printer: Printer, placed: GuardedRows) -> str:
    w = placed.window
    assert w is not None
    start, extent = printer.linear(w.start, "index"), printer.number(w.extent)
    return f"{start}, {w.step}, {extent}, {w.column_stride}"


def _base(printer: Printer, buffer: Buffer, base: Linear) -> str:
    name, owner = printer.memory(buffer)
    return f"{printer.use('offset')}({name}, {printer.linear(base, owner)})"


def indent(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]
