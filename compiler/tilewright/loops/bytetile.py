"""How a tile of byte products steps through memory: four consecutive depth steps side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.loops.affine import Linear, Range
from tilewright.loops.ir import Accumulate, Apply, Cast, Const, Expr, For, Load, Stmt, Tile
from tilewright.loops.locate import offset

GROUP = 4


@dataclass(frozen=True)
class ByteTile:
    """The operands, their offsets at the first row, column and depth step, and the loop over
    groups of four depth steps.
    """

    a: Load
    b: Load
    base_a: Linear
    base_b: Linear
    row_stride: int
    groups: For


def byte_tile(tile: Tile, steps: Stmt, ranges: Mapping[str, Range], width: int) -> ByteTile | None:
    """The form of a sum of products of bytes, or None if its operands are laid out otherwise."""
    if len(tile.depth) != 2 or not isinstance(steps, For):
        return None
    outer, inner = tile.depth
    leaf: Stmt = steps
    while isinstance(leaf, For):
        leaf = leaf.body
    if not isinstance(leaf, Accumulate) or not isinstance(leaf.value, Apply):
        return None
    a, b = (_bytes(e) for e in leaf.value.args)
    if a is None or b is None:
        return None
    at, bt = (offset(x.buffer, x.index, ranges) for x in (a, b))
    stepping = (tile.columns, outer, inner)
    if [at.coefficient(s) for s in (tile.columns, inner)] != [0, 1]:
        return None
    if [bt.coefficient(s) for s in (tile.columns, inner)] != [GROUP, 1]:
        return None
    is_single = isinstance(steps.extent, Const) and steps.extent.value == 1
    along = (at.coefficient(outer), bt.coefficient(outer))
    if not is_single and along != (GROUP, GROUP * width):
        return None
    for axis in (tile.rows, *stepping):
        at, bt = at.without(axis), bt.without(axis)
    row_stride = offset(a.buffer, a.index, ranges).coefficient(tile.rows)
    return ByteTile(a, b, at, bt, row_stride, steps)


def _bytes(e: Expr) -> Load | None:
    return e.arg if isinstance(e, Cast) and isinstance(e.arg, Load) else None
