"""Products of a few rows in scratch with weights in panels.

Panels are a few whole cache lines wide, whatever the length of a vector, and nearly equal: the last
one is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Accumulate,
    Block,
    Buffer,
    Expr,
    For,
    Stmt,
    Store,
    Tile,
    Var,
    as_expr,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Tensor, fresh_axis

LINE_BYTES = 64
LINES = 4  # in a panel's row, at most


def elements(extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop over `extent` elements, a literal in the kernel as the size of the scratch is."""
    j = Var(fresh_axis("j"))
    return For(j.name, index_const(extent), body(j), baked=True)


def padded(count: int, dtype: DType) -> int:
    """Columns of all panels that hold `count` columns."""
    width = panel_width(count, dtype)
    return -(-count // width) * width


def panel_width(count: int, dtype: DType) -> int:
    """Columns of a panel; `dtype` is the type of the sums."""
    line = LINE_BYTES // dtype.itemsize
    lines = -(-count // line)
    return -(-lines // -(-lines // LINES)) * line


def panel_loop(
    out: Buffer,
    packed: Tensor,
    depth: Sequence[tuple[str, int]],
    product: Callable[[Expr, Expr, Expr], Expr],
) -> Stmt:
    """One tile for each panel of weights [direction, panel, depth..., column, ...]: the sum over
    `depth` of what `product` says for a row, a panel and its column. Without a depth there is a
    single product, which no tile is made for.
    """
    r, p, c = (Var(fresh_axis(name)) for name in ("row", "panel", "column"))
    panels, width = packed.shape[1], packed.shape[3]
    at = (r, p * width + c)

    def block(s: Stmt) -> Stmt:
        return For(r.name, index_const(out.shape[0]), For(c.name, index_const(width), s))

    zero = block(Store(out, at, as_expr(0, out.dtype)))
    steps = block(Accumulate(out, at, ScalarOp.ADD, product(r, p, c)))
    for axis, extent in reversed(depth):
        steps = For(axis, index_const(extent), steps, baked=True)
    meaning = Block((zero, steps))
    names = tuple(axis for axis, _ in depth)
    tile = Tile(out, r.name, c.name, names, meaning) if depth else meaning
    return For(p.name, index_const(panels), tile)
