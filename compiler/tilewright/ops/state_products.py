"""Products of the hidden state with the recurrent weights, which lie in panels.

Panels are a few whole cache lines wide, whatever the length of a vector, and nearly equal: the last
one is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Accumulate,
    Block,
    Buffer,
    Expr,
    For,
    Load,
    Stmt,
    Store,
    Tile,
    Var,
    as_expr,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, select
from tilewright.ops.recurrence import Recurrence, Row, Task
from tilewright.ops.tensor import Compute, Tensor, compute, fresh_axis

LINE_BYTES = 64
LINES = 4  # in a panel's row, at most

Scratch = Mapping[str, tuple[int, DType]]
"""Elements for each row of a task, by name, and their type."""


class StateProduct(Protocol):
    """How the state's part of all gates' inputs is computed."""

    def scratch(self) -> Scratch:
        """What it keeps between its statements and the gates."""
        ...

    def statements(self, task: Task, t: Expr, h: Buffer, scratch: Sequence[Buffer]) -> list[Stmt]:
        """The product of a step."""
        ...

    def gate(self, row: Row, j: Expr, scratch: Sequence[Buffer]) -> Expr:
        """The whole input of gate element j: the input's part, the state's and the bias."""
        ...


class PlainProduct:
    """Weights as they are; the input's part has the bias in it."""

    def __init__(self, rec: Recurrence) -> None:
        self.rec = rec

    def scratch(self) -> Scratch:
        return {"gates": (padded(self.rec.width, self.rec.dtype), self.rec.dtype)}

    def statements(self, task: Task, t: Expr, h: Buffer, scratch: Sequence[Buffer]) -> list[Stmt]:
        return [multiply(task, scratch[0], h, 0, self.rec.width)]

    def gate(self, row: Row, j: Expr, scratch: Sequence[Buffer]) -> Expr:
        return row.product(j) + Load(scratch[0], (row.local, j))


def padded(count: int, dtype: DType) -> int:
    """Columns of all panels that hold `count` columns."""
    width = panel_width(count, dtype)
    return -(-count // width) * width


def panel_width(count: int, dtype: DType) -> int:
    """Columns of a panel; `dtype` is the type of the sums."""
    line = LINE_BYTES // dtype.itemsize
    lines = -(-count // line)
    return -(-lines // -(-lines // LINES)) * line


def multiply(task: Task, out: Buffer, state: Buffer, first: int, count: int) -> Stmt:
    """out[:, :count] = state @ weights[first : first + count].T; the rest of `out` is zero."""
    packed = _packed(task.rec, first, count)
    _, _, depth, _ = packed.shape
    k = Var(fresh_axis("k"))

    def steps(r: Expr, p: Expr, c: Expr) -> Expr:
        return Load(state, (r, k)) * packed[task.direction, p, k, c]

    return panel_loop(task, out, packed, [(k.name, depth)] if depth > 1 else [], steps)


def panel_loop(
    task: Task,
    out: Buffer,
    packed: Tensor,
    depth: Sequence[tuple[str, int]],
    product: Callable[[Expr, Expr, Expr], Expr],
) -> Stmt:
    """One tile for each panel: the sum over `depth` of what `product` says for a row, a panel and
    its column. Without a depth there is a single product, which no tile is made for.
    """
    r, p, c = (Var(fresh_axis(name)) for name in ("row", "panel", "column"))
    panels, width = packed.shape[1], panel_width_of(packed)
    at = (r, p * width + c)

    def block(s: Stmt) -> Stmt:
        return For(r.name, index_const(task.rows), For(c.name, index_const(width), s))

    zero = block(Store(out, at, as_expr(0, out.dtype)))
    steps = block(Accumulate(out, at, ScalarOp.ADD, product(r, p, c)))
    for axis, extent in reversed(depth):
        steps = For(axis, index_const(extent), steps, baked=True)
    meaning = Block((zero, steps))
    names = tuple(axis for axis, _ in depth)
    tile = Tile(out, r.name, c.name, names, meaning) if depth else meaning
    return For(p.name, index_const(panels), tile)


def panel_width_of(packed: Tensor) -> int:
    """The columns of packed weights [direction, panel, depth, column, byte of a group]."""
    return packed.shape[3]


def _packed(rec: Recurrence, first: int, count: int) -> Compute:
    """Some columns of the transposed recurrent weights in panels: [direction, panel, k, column]."""
    width = panel_width(count, rec.dtype)

    def element(d: Expr, p: Expr, k: Expr, c: Expr) -> Expr:
        column = p * width + c
        value = cast(rec.dtype, rec.weights[d, column + first if first else column, k])
        return select(column < count, value, as_expr(0, rec.dtype)) if count % width else value

    return compute((rec.directions, -(-count // width), rec.hidden, width), element)
