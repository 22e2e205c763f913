"""The product of one tap of a convolution: a tile's rows are pixels of one output row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import types

from tilewright_kernels.cpu.intrinsics import intrinsic
from tilewright_kernels.cpu.matmul import Product
from tilewright_kernels.cpu.tile import Tile, pack, unpack
from tilewright_kernels.cpu.vectors import word

Step = Callable[[Sequence[Any]], list[Any]]  # old registers to new ones


@dataclass(frozen=True)
class Window:
    """The columns of one input row that the rows of a tile read."""

    builder: Any
    tile: Tile
    row: Any
    first: Any
    step: Any
    columns: Any
    column_stride: Any

    def column(self, r: int) -> Any:
        return self.builder.add(self.first, self.builder.mul(self.step, word(r)))

    def is_inside(self, column: Any) -> Any:
        """Unsigned, so that negative columns are large."""
        return self.builder.icmp_unsigned("<", column, self.columns)

    def all_inside(self) -> Any:
        last = self.column(self.tile.rows - 1)
        return self.builder.and_(self.is_inside(self.first), self.is_inside(last))

    def pointer(self, column: Any) -> Any:
        return self.builder.gep(self.row, [self.builder.mul(column, self.column_stride)])

    def distance(self, rows: int) -> Any:
        """Elements between the first column and that of a row so much further."""
        columns = self.builder.mul(self.step, word(rows))
        return self.builder.mul(columns, self.column_stride)

    def pointers(self) -> list[Any]:
        return [self.pointer(self.column(r)) for r in range(self.tile.rows)]

    def clamped_pointers(self) -> list[Any]:
        """As `pointers`, but the nearest column of the row instead of one outside."""
        b, last = self.builder, self.builder.sub(self.columns, word(1))
        found = []
        for r in range(self.tile.rows):
            column = self.column(r)
            column = b.select(b.icmp_signed("<", column, word(0)), word(0), column)
            found.append(self.pointer(b.select(b.icmp_signed(">", column, last), last, column)))
        return found

    def keep_inside(self, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
        """The new registers of the rows whose column is inside, the old ones of the others."""
        kept = []
        for r in range(self.tile.rows):
            inside = self.is_inside(self.column(r))
            for i in range(r * self.tile.vectors, (r + 1) * self.tile.vectors):
                kept.append(self.builder.select(inside, new[i], old[i]))
        return kept

    def emit(
        self, row_is_inside: Any, old: Sequence[Any], inside: Step, at_edge: Step
    ) -> list[Any]:
        """The old registers for a row outside, else one of the steps: `inside` if all columns are
        inside, `at_edge` if not.
        """
        b = self.builder
        names = ("row", "plain", "edge", "end")
        row, plain, edge, end = (b.append_basic_block(f"window.{name}") for name in names)
        results = [(list(old), b.block)]
        b.cbranch(row_is_inside, row, end)
        b.position_at_end(row)
        b.cbranch(self.all_inside(), plain, edge)
        for block, step in ((plain, inside), (edge, at_edge)):
            b.position_at_end(block)
            results.append((step(old), b.block))
            b.branch(end)
        b.position_at_end(end)
        return merge(b, results)


def merge(builder: Any, results: Sequence[tuple[Sequence[Any], Any]]) -> list[Any]:
    """The registers that came from whichever block was left last, where all of them meet."""
    merged = [builder.phi(register.type) for register in results[0][0]]
    for registers, block in results:
        for phi, register in zip(merged, registers, strict=True):
            phi.add_incoming(register, block)
    return merged


@intrinsic
def matmul_window(
    typing: Any,
    acc: Any,
    x: Any,
    inside_row: Any,
    first_column: Any,
    step: Any,
    columns: Any,
    column_stride: Any,
    k_stride: Any,
    b: Any,
    k: Any,
) -> Any:
    """acc + A @ B, where row r of A is column `first_column + r * step` of the input row at `x`.

    Columns outside of [0, columns) count as zeros, and so does everything if `inside_row` is false;
    nothing outside is read. `columns` >= 1, `step` >= 0; strides count elements.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, row, inside, *geometry, channel_stride, panel, count = values
        window = Window(builder, acc, row, *geometry)
        registers = unpack(builder, tile)

        def product(pointers: Sequence[Any], old: Sequence[Any]) -> list[Any]:
            return Product(acc, pointers, channel_stride, panel, count).emit(builder, old)

        def plain(old: Sequence[Any]) -> list[Any]:
            return product(window.pointers(), old)

        def edge(old: Sequence[Any]) -> list[Any]:
            # Clamped columns are multiplied too and the results thrown away: zeros instead would
            # need a stride of their own for every row.
            return window.keep_inside(product(window.clamped_pointers(), old), old)

        return pack(builder, window.emit(inside, registers, plain, edge))

    i64 = types.int64
    return acc(acc, x, types.boolean, i64, i64, i64, i64, i64, b, i64), emit
