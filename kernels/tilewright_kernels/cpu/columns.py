"""Reductions in which each column of a tile has operands of its own: depthwise products, pooling.

    acc = full_f32(14, 2, 0.0)
    acc = add_product_columns(acc, x, row_stride, w)

Row r adds the vectors at `x + r * row_stride`, times those at `w`, which all rows share. The names
with `_window` take pixels of one row of an image as a tile's rows, as `matmul_window` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import types

from tilewright_kernels.cpu import plain
from tilewright_kernels.cpu.intrinsics import intrinsic, literal_intrinsic
from tilewright_kernels.cpu.tile import Tile, pack, unpack
from tilewright_kernels.cpu.values import Number
from tilewright_kernels.cpu.vectors import fma, free_registers, load_vector, prefetch, splat, word
from tilewright_kernels.cpu.window import Window, merge

Step = Callable[[Any, Any, Any, Any], Any]  # builder, old, element, factor or None


def _full(dtype: Any) -> Any:
    @literal_intrinsic
    def full(typing: Any, rows: Any, vectors: Any, value: Any) -> Any:
        """A tile with the value in every element."""
        tile = Tile(dtype, rows.literal_value, vectors.literal_value)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            free_registers(builder)
            return pack(builder, [splat(builder, values[2], tile.vector)] * tile.registers)

        return tile(rows, vectors, dtype), emit

    return full


full_f32, full_f64 = _full(types.float32), _full(types.float64)


def _product(builder: Any, old: Any, element: Any, factor: Any) -> Any:
    return fma(builder, element, factor, old)


def _sum(builder: Any, old: Any, element: Any, factor: Any) -> Any:
    return (Number(builder, old) + Number(builder, element)).value


def _greatest(builder: Any, old: Any, element: Any, factor: Any) -> Any:
    return plain.maximum(Number(builder, old), Number(builder, element)).value


def _least(builder: Any, old: Any, element: Any, factor: Any) -> Any:
    return plain.minimum(Number(builder, old), Number(builder, element)).value


@dataclass(frozen=True)
class _Stepper:
    """One step of a reduction; `factors` points to the row that all rows share, or is None.

    `ahead` is the distance to the next tile: what lies there is asked for. Pooling reads every
    element about once, by strides that processors do not foresee; products read theirs again.
    """

    builder: Any
    tile: Tile
    step: Step
    factors: Any
    ahead: Any = None

    def shared(self) -> list[Any]:
        return [
            self.factors and load_vector(self.builder, self.factors, self.tile.vector, place)
            for place in self.places
        ]

    @property
    def places(self) -> list[Any]:
        return [word(v * self.tile.lanes) for v in range(self.tile.vectors)]

    def row(self, pointer: Any, old: Sequence[Any], shared: Sequence[Any]) -> list[Any]:
        """The registers of one row after the step."""
        results = []
        for place, register, factor in zip(self.places, old, shared, strict=True):
            element = load_vector(self.builder, pointer, self.tile.vector, place)
            if self.ahead is not None:
                prefetch(self.builder, pointer, self.builder.add(self.ahead, place))
            results.append(self.step(self.builder, register, element, factor))
        return results

    def row_if(
        self, condition: Any, pointer: Any, old: Sequence[Any], shared: Sequence[Any]
    ) -> list[Any]:
        """The same where the condition holds, else the old registers.

        With a branch: loads under a mask would all be hoisted to the front, and spill.
        """
        b = self.builder
        before, inside, after = b.block, b.append_basic_block("row"), b.append_basic_block("next")
        b.cbranch(condition, inside, after)
        b.position_at_end(inside)
        new = self.row(pointer, old, shared)
        b.branch(after)
        b.position_at_end(after)
        return merge(b, [(old, before), (new, inside)])

    def rows(self, pointers: Sequence[Any], old: Sequence[Any]) -> list[Any]:
        """All registers after the step."""
        shared, results = self.shared(), []
        for pointer, registers in zip(pointers, self.by_row(old), strict=True):
            results += self.row(pointer, registers, shared)
        return results

    def by_row(self, registers: Sequence[Any]) -> list[Sequence[Any]]:
        n = self.tile.vectors
        return [registers[k : k + n] for k in range(0, len(registers), n)]

    def rows_inside(self, window: Window, old: Sequence[Any]) -> list[Any]:
        """All registers after a step of the rows that are inside of the window."""
        shared, results = self.shared(), []
        for r, registers in enumerate(self.by_row(old)):
            column = window.column(r)
            pointer, there = window.pointer(column), window.is_inside(column)
            results += self.row_if(there, pointer, registers, shared)
        return results


def _plain(step: Step, factored: bool) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, x, row_stride, *factors = values
        kind = signature.args[0]
        ahead = None if factors else builder.mul(row_stride, word(kind.rows))
        stepper = _Stepper(builder, kind, step, factors[0] if factors else None, ahead)
        rows = [builder.gep(x, [builder.mul(row_stride, word(r))]) for r in range(kind.rows)]
        return pack(builder, stepper.rows(rows, unpack(builder, tile)))

    i64 = types.int64
    if factored:

        @intrinsic
        def with_factor(typing: Any, acc: Any, x: Any, row_stride: Any, w: Any) -> Any:
            return acc(acc, x, i64, w), emit

        return with_factor

    @intrinsic
    def alone(typing: Any, acc: Any, x: Any, row_stride: Any) -> Any:
        return acc(acc, x, i64), emit

    return alone


def _windowed(step: Step, factored: bool) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, x, inside, first, along, columns, stride, *factors = values
        kind = signature.args[0]
        window = Window(builder, kind, x, first, along, columns, stride)
        ahead = None if factors else window.distance(kind.rows)
        stepper = _Stepper(builder, kind, step, factors[0] if factors else None, ahead)

        def plain(old: Sequence[Any]) -> list[Any]:
            return stepper.rows(window.pointers(), old)

        def edge(old: Sequence[Any]) -> list[Any]:
            return stepper.rows_inside(window, old)

        return pack(builder, window.emit(inside, unpack(builder, tile), plain, edge))

    i64 = types.int64
    window = (types.boolean, i64, i64, i64, i64)
    if factored:

        @intrinsic
        def with_factor(
            typing: Any,
            acc: Any,
            x: Any,
            inside_row: Any,
            first_column: Any,
            step: Any,
            columns: Any,
            column_stride: Any,
            w: Any,
        ) -> Any:
            return acc(acc, x, *window, w), emit

        return with_factor

    @intrinsic
    def alone(
        typing: Any,
        acc: Any,
        x: Any,
        inside_row: Any,
        first_column: Any,
        step: Any,
        columns: Any,
        column_stride: Any,
    ) -> Any:
        return acc(acc, x, *window), emit

    return alone


add_product_columns = _plain(_product, factored=True)
add_columns = _plain(_sum, factored=False)
maximum_columns = _plain(_greatest, factored=False)
minimum_columns = _plain(_least, factored=False)
add_product_columns_window = _windowed(_product, factored=True)
add_columns_window = _windowed(_sum, factored=False)
maximum_columns_window = _windowed(_greatest, factored=False)
minimum_columns_window = _windowed(_least, factored=False)
