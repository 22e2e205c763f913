"""Products of a hidden state that is rounded to bytes at every step with weights that are bytes.

The state's range, widened to hold zero, is divided into 255 steps; rows that one task computes
share it. Products of bytes are summed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Block,
    Buffer,
    Cast,
    Expr,
    For,
    If,
    Load,
    Space,
    Stmt,
    Store,
    Var,
    apply,
    as_expr,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, maximum, minimum, select
from tilewright.ops.recurrence import Recurrence, Row, Task, elements
from tilewright.ops.state_products import Scratch, padded, panel_loop, panel_width
from tilewright.ops.tensor import Compute, Constant, Tensor, compute, fresh_axis

GROUP = 4  # bytes of consecutive k that lie side by side
LANES = 16  # extremes that are tracked side by side
STEPS = 255


@dataclass(frozen=True)
class QuantisedProduct:
    """Weights [direction, width, hidden] of bytes, with a scale and a zero point for each direction
    or each of its columns. The bias is added last.
    """

    rec: Recurrence
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None  # [direction, 2 * width]

    def scratch(self) -> Scratch:
        """Sums, the state in bytes, the sum of these, and their scale and zero point."""
        depth = self.groups * GROUP
        sums = padded(self.rec.width, DType.I32)
        return {
            "sums": (sums, DType.I32),
            "bytes": (depth, DType.U8),
            "total": (1, DType.I32),
            "scale": (1, DType.F32),
            "zero": (1, DType.I32),
        }

    @property
    def groups(self) -> int:
        return -(-self.rec.hidden // GROUP)

    def statements(self, task: Task, t: Expr, h: Buffer, scratch: Sequence[Buffer]) -> list[Stmt]:
        sums, state, total, scale, zero = scratch
        return [
            self._range(task, t, h, scale, zero),
            task.each_row(t, lambda row: self._round(row, h, (state, total), (scale, zero))),
            self._multiply(task, sums, state),
        ]

    def gate(self, row: Row, j: Expr, scratch: Sequence[Buffer]) -> Expr:
        sums, _, total, scale, zero = scratch
        first = index_const(0)
        shift = Load(zero, (row.local, first))
        whole: Expr = Load(sums, (row.local, j)) - shift * self.column_sums[row.direction, j]
        if self.is_shifted:
            point = Cast(DType.I32, parameter(self.zero_point, row.direction, j))
            known = Load(total, (row.local, first)) - shift * self.rec.hidden
            whole = whole - known * (point - self.sign)
        factor = Load(scale, (row.local, first)) * parameter(self.scale, row.direction, j)
        value = row.product(j) + Cast(DType.F32, whole) * factor
        return value if self.whole_bias is None else value + self.whole_bias[row.direction, j]

    @cached_property
    def whole_bias(self) -> Compute | None:
        """Both biases."""
        if self.bias is None:
            return None
        bias, width = self.bias, self.rec.width
        return compute((self.rec.directions, width), lambda d, j: bias[d, j] + bias[d, j + width])

    @property
    def sign(self) -> int:
        """What the weights are shifted by, to be signed."""
        return 0 if self.rec.weights.dtype is DType.I8 else 128

    @property
    def is_shifted(self) -> bool:
        """Whether a zero point of the signed weights may differ from zero."""
        point = self.zero_point
        return not isinstance(point, Constant) or bool((point.value != self.sign).any())

    def _signed(self, d: Expr, j: Expr, k: Expr) -> Expr:
        weight = self.rec.weights[d, j, k]
        if not self.sign:
            return weight
        return Cast(DType.I8, Cast(DType.I32, weight) - self.sign)

    @cached_property
    def column_sums(self) -> Compute:
        """The sum of each column's weights."""
        rec = self.rec

        def element(d: Expr, j: Expr, k: Expr) -> Expr:
            return Cast(DType.I32, self._signed(d, j, k))

        shape = (rec.directions, rec.width)
        return compute(shape, element, reduce=ScalarOp.ADD, over=[rec.hidden])

    def _packed(self) -> Compute:
        """The weights in panels: [direction, panel, group of k, column, byte of the group]."""
        rec, width = self.rec, panel_width(self.rec.width, DType.I32)

        def element(d: Expr, p: Expr, g: Expr, c: Expr, b: Expr) -> Expr:
            column, k = p * width + c, g * GROUP + b
            value = self._signed(d, column, k)
            zero = as_expr(0, DType.I8)
            if rec.hidden % GROUP:
                value = select(k < rec.hidden, value, zero)
            return select(column < rec.width, value, zero) if rec.width % width else value

        panels = -(-rec.width // width)
        return compute((rec.directions, panels, self.groups, width, GROUP), element)

    def _multiply(self, task: Task, sums: Buffer, state: Buffer) -> Stmt:
        packed = self._packed()
        g, b = (Var(fresh_axis(name)) for name in ("group", "byte"))

        def product(r: Expr, p: Expr, c: Expr) -> Expr:
            left = Cast(DType.I32, Load(state, (r, g * GROUP + b)))
            return left * Cast(DType.I32, packed[task.direction, p, g, c, b])

        depth = [(g.name, self.groups), (b.name, GROUP)]
        return panel_loop(task, sums, packed, depth, product)

    def _range(self, task: Task, t: Expr, h: Buffer, scale: Buffer, zero: Buffer) -> Stmt:
        """The scale and the zero point of the rows' range."""
        low, high = (
            Buffer(fresh_axis(name), DType.F32, (LANES,), space=Space.LOCAL)
            for name in ("low", "high")
        )
        one = index_const(0)

        def begin(j: Expr) -> Stmt:
            return Block(tuple(Store(b, (j,), as_expr(0, DType.F32)) for b in (low, high)))

        def fold(j: Expr) -> Stmt:
            least = Accumulate(low, (one,), ScalarOp.MIN, Load(low, (j + 1,)))
            return Block((least, Accumulate(high, (one,), ScalarOp.MAX, Load(high, (j + 1,)))))

        scan = task.each_row(t, lambda row: self._scan(row, h, low, high))
        least = Load(low, (one,))
        width = Load(high, (one,)) - least

        def keep(row: Row) -> Stmt:
            at = (row.local, one)
            point = maximum(minimum(0.0 - least / Load(scale, at), STEPS), 0)
            return Block(
                (
                    Store(scale, at, select(width.eq(0), as_expr(1, DType.F32), width / STEPS)),
                    Store(zero, at, Cast(DType.I32, apply(ScalarOp.RINT, point))),
                )
            )

        last = task.each_row(t, keep)
        found = Block((elements(LANES, begin), scan, elements(LANES - 1, fold), last))
        return Alloc(low, Alloc(high, found))

    def _scan(self, row: Row, h: Buffer, low: Buffer, high: Buffer) -> Stmt:
        """A row's extremes, in so many lanes. A sequence that has ended counts as zeros."""
        hidden = self.rec.hidden

        def track(j: Expr, lane: Expr) -> Stmt:
            value = Load(h, (row.local, j))
            return Block(
                (
                    Accumulate(low, (lane,), ScalarOp.MIN, value),
                    Accumulate(high, (lane,), ScalarOp.MAX, value),
                )
            )

        block, whole = Var(fresh_axis("block")), hidden // LANES
        parts: list[Stmt] = []
        if whole:
            lanes = elements(LANES, lambda lane: track(block * LANES + lane, lane))
            parts.append(For(block.name, index_const(whole), lanes, baked=True))
        if hidden % LANES:
            parts.append(elements(hidden % LANES, lambda j: track(j + whole * LANES, j)))
        scan = Block(tuple(parts))
        return scan if self.rec.lengths is None else If(row.step <= row.length, scan)

    def _round(
        self, row: Row, h: Buffer, targets: tuple[Buffer, Buffer], how: tuple[Buffer, Buffer]
    ) -> Stmt:
        """A row in bytes, and their sum."""
        (state, total), (scale, zero) = targets, how
        at = (row.local, index_const(0))

        def store(j: Expr) -> Stmt:
            point = Cast(DType.F32, Load(zero, at))
            steps = apply(ScalarOp.RINT, Load(h, (row.local, j)) / Load(scale, at)) + point
            return Store(state, (row.local, j), cast(DType.U8, minimum(maximum(steps, 0), STEPS)))

        def add(j: Expr) -> Stmt:
            return Accumulate(total, at, ScalarOp.ADD, Cast(DType.I32, Load(state, (row.local, j))))

        hidden = self.rec.hidden
        begin = Store(total, at, as_expr(0, DType.I32))
        sum_up = (begin, elements(hidden, add)) if self.is_shifted else ()
        return Block((elements(hidden, store), *sum_up))


def parameter(p: Tensor, direction: Expr, j: Expr) -> Expr:
    """A scale or zero point of a direction, or of one of its columns."""
    if p.rank == 1:
        return p[direction]
    return p[direction, j if p.shape[1] > 1 else index_const(0)]
