"""The products of an LSTM on bytes: its input is rounded once, its hidden state at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Alloc,
    Block,
    Buffer,
    Expr,
    For,
    If,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
)
from tilewright.ops.byte_weights import (
    GROUP,
    ByteWeights,
    Rounding,
    Track,
    round_row,
    sum_row,
    with_range,
)
from tilewright.ops.common import minimum
from tilewright.ops.panels import elements
from tilewright.ops.recurrence import Recurrence, Row, Task
from tilewright.ops.state_products import Scratch
from tilewright.ops.tensor import Compute, NestOutput, Tensor, compute, fresh_axis, nest

ROWS = 8  # of the input, in one task


@dataclass(frozen=True)
class QuantisedProduct:
    """The state in bytes times weights in bytes; the bias is added last. Rows of a task share the
    range of the state.
    """

    rec: Recurrence
    weights: ByteWeights
    bias: Tensor | None  # [direction, 2 * width]

    def scratch(self) -> Scratch:
        """Sums, the state in bytes, the sum of these, and their scale and zero point."""
        return {
            "sums": (self.weights.padded_columns, DType.I32),
            "bytes": (self.weights.groups * GROUP, DType.U8),
            "total": (1, DType.I32),
            "scale": (1, DType.F32),
            "zero": (1, DType.I32),
        }

    def statements(self, task: Task, t: Expr, h: Buffer, scratch: Sequence[Buffer]) -> list[Stmt]:
        sums, state, total, _, _ = scratch
        hidden = self.rec.hidden

        def rounded(row: Row) -> Stmt:
            rounding = _rounding(scratch, row.local)
            bytes_ = round_row(
                hidden, lambda j: Load(h, (row.local, j)), rounding, state, row.local
            )
            if not self.weights.is_shifted:
                return bytes_
            return Block((bytes_, sum_row(hidden, state, row.local, total)))

        return [
            self._range(task, t, h, scratch),
            task.each_row(t, rounded),
            self.weights.multiply(sums, state, task.direction),
        ]

    def _range(self, task: Task, t: Expr, h: Buffer, scratch: Sequence[Buffer]) -> Stmt:
        """The scale and zero point of all rows. A sequence that has ended counts as zeros."""
        *_, scale, zero = scratch
        hidden = self.rec.hidden

        def keep(factor: Expr, point: Expr) -> Stmt:
            def both(row: Row) -> Stmt:
                at = (row.local, index_const(0))
                return Block((Store(scale, at, factor), Store(zero, at, point)))

            return task.each_row(t, both)

        def scan(track: Track) -> Stmt:
            def one(row: Row) -> Stmt:
                shown = track(hidden, lambda j: Load(h, (row.local, j)))
                return shown if self.rec.lengths is None else If(row.step <= row.length, shown)

            return task.each_row(t, one)

        return with_range(scan, keep)

    def gate(self, row: Row, j: Expr, scratch: Sequence[Buffer]) -> Expr:
        sums, _, total, _, _ = scratch
        rounding, at = _rounding(scratch, row.local), (row.direction, j)
        whole = Load(total, (row.local, index_const(0)))
        part = self.weights.scaled(Load(sums, (row.local, j)), rounding, whole, at)
        value = row.product(j) + part
        return value if self.whole_bias is None else value + self.whole_bias[at]

    @cached_property
    def whole_bias(self) -> Compute | None:
        """Both biases."""
        if self.bias is None:
            return None
        bias, width = self.bias, self.rec.width
        return compute((self.rec.directions, width), lambda d, j: bias[d, j] + bias[d, j + width])


def _rounding(scratch: Sequence[Buffer], row: Expr) -> Rounding:
    *_, scale, zero = scratch
    at = (row, index_const(0))
    return Rounding(Load(scale, at), Load(zero, at))


def input_products(x: Tensor, weights: ByteWeights) -> NestOutput:
    """x in bytes of its own range times the weights of all directions side by side:
    [time, batch, direction * column].
    """
    directions, batch = weights.values.shape[0], x.shape[1]
    count = x.shape[0] * batch
    shape = (x.shape[0], batch, directions * weights.columns)
    scale, zero = _input_range(x)

    def body(y: Tensor) -> Stmt:
        return _InputTask(x, weights, Rounding(scale[0], zero[0]), y, count, directions).body()

    return nest([(shape, DType.F32)], body, "Products")[0]


def _input_range(x: Tensor) -> tuple[NestOutput, ...]:
    """The scale and the zero point of x."""

    def scan(track: Track) -> Stmt:
        t, n = (Var(fresh_axis(name)) for name in ("t", "n"))
        shown = track(x.shape[2], lambda k: x[t, n, k])
        inner = For(n.name, index_const(x.shape[1]), shown)
        return For(t.name, index_const(x.shape[0]), inner)

    def body(scale: Tensor, zero: Tensor) -> Stmt:
        first = (index_const(0),)

        def keep(factor: Expr, point: Expr) -> Stmt:
            return Block((Store(scale, first, factor), Store(zero, first, point)))

        return with_range(scan, keep)

    return nest([((1,), DType.F32), ((1,), DType.I32)], body, "Range")


@dataclass(frozen=True)
class _InputTask:
    """A few rows of the input, times the weights of every direction. The last task's rows are
    those before the end, so that it has as many; some are then computed twice.
    """

    x: Tensor
    weights: ByteWeights
    rounding: Rounding
    y: Tensor
    count: int
    directions: int

    def body(self) -> Stmt:
        rows = min(ROWS, self.count)
        task, d, r = (Var(fresh_axis(name)) for name in ("task", "direction", "row"))
        start: Expr = task * rows
        if self.count % rows:
            start = minimum(start, self.count - rows)
        sums, bytes_, total = (
            Buffer(fresh_axis(name), dtype, (rows, width), space=Space.LOCAL)
            for name, dtype, width in (
                ("sums", DType.I32, self.weights.padded_columns),
                ("bytes", DType.U8, self.weights.groups * GROUP),
                ("total", DType.I32, 1),
            )
        )
        batch = self.x.shape[1]
        place = ((start + r) // batch, (start + r) % batch)
        rounded = For(r.name, index_const(rows), self._round(r, place, bytes_, total))
        stored = For(r.name, index_const(rows), self._store(r, place, d, sums, total))
        multiplied = Block((self.weights.multiply(sums, bytes_, d), stored))
        every = For(d.name, index_const(self.directions), multiplied)
        whole: Stmt = Block((rounded, every))
        for buffer in (sums, bytes_, total):
            whole = Alloc(buffer, whole)
        return For(task.name, index_const(-(-self.count // rows)), whole, LoopKind.PARALLEL)

    def _round(self, r: Expr, place: tuple[Expr, Expr], bytes_: Buffer, total: Buffer) -> Stmt:
        depth = self.weights.depth
        row = round_row(depth, lambda k: self.x[(*place, k)], self.rounding, bytes_, r)
        return Block((row, sum_row(depth, bytes_, r, total))) if self.weights.is_shifted else row

    def _store(
        self, r: Expr, place: tuple[Expr, Expr], d: Expr, sums: Buffer, total: Buffer
    ) -> Stmt:
        columns, whole = self.weights.columns, Load(total, (r, index_const(0)))

        def store(j: Expr) -> Stmt:
            value = self.weights.scaled(Load(sums, (r, j)), self.rounding, whole, (d, j))
            return Store(self.y, (*place, d * columns + j), value)

        return elements(columns, store)
