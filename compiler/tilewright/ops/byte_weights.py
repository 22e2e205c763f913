"""Matrix products of unsigned bytes with weights that are bytes, summed exactly and scaled.

What is rounded to bytes is divided into 255 steps of its range, widened to hold zero.
"""

from __future__ import annotations

from collections.abc import Callable
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
from tilewright.ops.panels import elements, padded, panel_loop, panel_width
from tilewright.ops.tensor import Compute, Constant, Tensor, compute, fresh_axis

GROUP = 4  # bytes of consecutive k that lie side by side
LANES = 64  # extremes that are tracked side by side
STEPS = 255

Read = Callable[[Expr], Expr]
Track = Callable[[int, Read], Stmt]
"""Takes note of so many values, read by position."""


@dataclass(frozen=True)
class ByteWeights:
    """Weights [direction, column, k] with a scale and a zero point for each direction or for each
    of its columns.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def columns(self) -> int:
        return self.values.shape[1]

    @property
    def depth(self) -> int:
        return self.values.shape[2]

    @property
    def groups(self) -> int:
        return -(-self.depth // GROUP)

    @property
    def padded_columns(self) -> int:
        return padded(self.columns, DType.I32)

    @property
    def sign(self) -> int:
        """What the weights are shifted by, to be signed."""
        return 0 if self.values.dtype is DType.I8 else 128

    @property
    def is_shifted(self) -> bool:
        """Whether a zero point of the signed weights may differ from zero."""
        point = self.zero_point
        return not isinstance(point, Constant) or bool((point.value != self.sign).any())

    def _signed(self, d: Expr, j: Expr, k: Expr) -> Expr:
        weight = self.values[d, j, k]
        return weight if not self.sign else Cast(DType.I8, Cast(DType.I32, weight) - self.sign)

    @cached_property
    def column_sums(self) -> Compute:
        """The sum of each column's weights."""

        def element(d: Expr, j: Expr, k: Expr) -> Expr:
            return Cast(DType.I32, self._signed(d, j, k))

        shape = self.values.shape[:2]
        return compute(shape, element, reduce=ScalarOp.ADD, over=[self.depth])

    @cached_property
    def packed(self) -> Compute:
        """The weights in panels: [direction, panel, group of k, column, byte of the group]."""
        columns, width = self.columns, panel_width(self.columns, DType.I32)

        def element(d: Expr, p: Expr, g: Expr, c: Expr, b: Expr) -> Expr:
            column, k = p * width + c, g * GROUP + b
            value, zero = self._signed(d, column, k), as_expr(0, DType.I8)
            if self.depth % GROUP:
                value = select(k < self.depth, value, zero)
            return select(column < columns, value, zero) if columns % width else value

        panels = -(-columns // width)
        return compute((self.values.shape[0], panels, self.groups, width, GROUP), element)

    def multiply(self, sums: Buffer, rows: Buffer, direction: Expr) -> Stmt:
        """sums[row, column] = the sum of products of a row's bytes with the weights as stored."""
        g, b = (Var(fresh_axis(name)) for name in ("group", "byte"))

        def product(r: Expr, p: Expr, c: Expr) -> Expr:
            left = Cast(DType.I32, Load(rows, (r, g * GROUP + b)))
            return left * Cast(DType.I32, self.packed[direction, p, g, c, b])

        depth = [(g.name, self.groups), (b.name, GROUP)]
        return panel_loop(sums, self.packed, depth, product)

    def scaled(self, sum_: Expr, rounding: Rounding, total: Expr, at: tuple[Expr, Expr]) -> Expr:
        """The product's element at a direction and column, from the sum that `multiply` made and
        the sum of the row's bytes.
        """
        whole = sum_ - rounding.zero * self.column_sums[at]
        if self.is_shifted:
            point = Cast(DType.I32, _parameter(self.zero_point, *at)) - self.sign
            whole = whole - (total - rounding.zero * self.depth) * point
        return Cast(DType.F32, whole) * (rounding.scale * _parameter(self.scale, *at))


def _parameter(p: Tensor, direction: Expr, j: Expr) -> Expr:
    if p.rank == 1:
        return p[direction]
    return p[direction, j if p.shape[1] > 1 else index_const(0)]


@dataclass(frozen=True)
class Rounding:
    """A scale, and the int32 byte that stands for zero."""

    scale: Expr
    zero: Expr

    def byte(self, x: Expr) -> Expr:
        """The nearest step."""
        steps = apply(ScalarOp.RINT, x / self.scale) + Cast(DType.F32, self.zero)
        return cast(DType.U8, minimum(maximum(steps, 0), STEPS))


def round_row(count: int, read: Read, rounding: Rounding, row: Buffer, at: Expr) -> Stmt:
    """row[at, j] = the byte of read(j)."""
    return elements(count, lambda j: Store(row, (at, j), rounding.byte(read(j))))


def sum_row(count: int, row: Buffer, at: Expr, total: Buffer) -> Stmt:
    """total[at, 0] = the sum of a row's bytes."""
    place = (at, index_const(0))

    def add(j: Expr) -> Stmt:
        return Accumulate(total, place, ScalarOp.ADD, Cast(DType.I32, Load(row, (at, j))))

    return Block((Store(total, place, as_expr(0, DType.I32)), elements(count, add)))


def with_range(
    scan: Callable[[Track], Stmt],
    keep: Callable[[Expr, Expr], Stmt],
) -> Stmt:
    """`scan` shows all values to what it is given; `keep` gets their scale and zero point."""
    low, high = (
        Buffer(fresh_axis(name), DType.F32, (LANES,), space=Space.LOCAL) for name in ("low", "high")
    )

    def both(lane: Expr, value: Callable[[Buffer], Expr]) -> Stmt:
        least = Accumulate(low, (lane,), ScalarOp.MIN, value(low))
        return Block((least, Accumulate(high, (lane,), ScalarOp.MAX, value(high))))

    def begin(j: Expr) -> Stmt:
        return Block(tuple(Store(b, (j,), as_expr(0, DType.F32)) for b in (low, high)))

    def track(count: int, read: Read) -> Stmt:
        block, whole = Var(fresh_axis("block")), count // LANES
        parts: list[Stmt] = []
        if whole:
            lanes = elements(LANES, lambda n: both(n, lambda _: read(block * LANES + n)))
            parts.append(For(block.name, index_const(whole), lanes))
        if count % LANES:
            rest = elements(count % LANES, lambda n: both(n, lambda _: read(n + whole * LANES)))
            parts.append(rest)
        return Block(tuple(parts))

    def fold(half: int) -> Stmt:
        return elements(half, lambda n: both(n, lambda b: Load(b, (n + half,))))

    halves = [fold(LANES >> k) for k in range(1, LANES.bit_length())]
    found = Block((elements(LANES, begin), scan(track), *halves, _keep(low, high, keep)))
    return Alloc(low, Alloc(high, found))


def _keep(low: Buffer, high: Buffer, keep: Callable[[Expr, Expr], Stmt]) -> Stmt:
    first = (index_const(0),)
    least, width = Load(low, first), Load(high, first) - Load(low, first)
    scale = select(width.eq(0), as_expr(1, DType.F32), width / STEPS)
    point = maximum(minimum(0.0 - least / scale, STEPS), 0)
    return keep(scale, Cast(DType.I32, apply(ScalarOp.RINT, point)))
