"""Products of the hidden state with the recurrent weights: how a step gets its gates' inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Buffer,
    Expr,
    Load,
    Stmt,
    Var,
    as_expr,
    index_const,
)
from tilewright.ops.common import cast, select
from tilewright.ops.panels import padded, panel_loop, panel_width
from tilewright.ops.recurrence import Recurrence, Row, Task
from tilewright.ops.tensor import Compute, compute, fresh_axis

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


def multiply(task: Task, out: Buffer, state: Buffer, first: int, count: int) -> Stmt:
    """out[:, :count] = state @ weights[first : first + count].T; the rest of `out` is zero."""
    packed = _packed(task.rec, first, count)
    _, _, depth, _ = packed.shape
    axis = fresh_axis("k")
    k: Expr = Var(axis) if depth > 1 else index_const(0)

    def steps(r: Expr, p: Expr, c: Expr) -> Expr:
        return Load(state, (r, k)) * packed[task.direction, p, k, c]

    return panel_loop(out, packed, [(axis, depth)] if depth > 1 else [], steps)


def _packed(rec: Recurrence, first: int, count: int) -> Compute:
    """Some columns of the transposed recurrent weights in panels: [direction, panel, k, column]."""
    width = panel_width(count, rec.dtype)

    def element(d: Expr, p: Expr, k: Expr, c: Expr) -> Expr:
        column = p * width + c
        value = cast(rec.dtype, rec.weights[d, column + first if first else column, k])
        return select(column < count, value, as_expr(0, rec.dtype)) if count % width else value

    return compute((rec.directions, -(-count // width), rec.hidden, width), element)
