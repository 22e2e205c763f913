"""Reductions in which each column of a tile has operands of its own: depthwise products, pooling.

    acc = full_f32(14, 2, 0.0)
    acc = add_product_columns(acc, x, row_stride, w)

Row r adds the vectors at `x + r * row_stride`, times those at `w`, which all rows share. The names
with `_window` take pixels of one row of an image as a tile's rows, as `matmul_window` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cpu import plain
from tilewright_kernels.cpu.intrinsics import intrinsic, literal_intrinsic
from tilewright_kernels.cpu.tile import Tile, pack, unpack
from tilewright_kernels.cpu.values import Number
from tilewright_kernels.cpu.vectors import fma, load_vector, load_vector_if, splat, word
from tilewright_kernels.cpu.window import Window

Step = Callable[[Any, Any, Any, Any], Any]  # builder, old, element, factor or None
Loader = Callable[[int, Any], Any]  # row and place in it to the vector there


def _full(dtype: Any) -> Any:
    @literal_intrinsic
    def full(typing: Any, rows: Any, vectors: Any, value: Any) -> Any:
        """A tile with the value in every element."""
        tile = Tile(dtype, rows.literal_value, vectors.literal_value)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
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


def _stepped(
    builder: Any, tile: Tile, step: Step, load: Loader, factors: Any, old: Sequence[Any]
) -> list[Any]:
    """The registers after one step; `factors` points to the shared row, None if there is none."""
    places = [word(v * tile.lanes) for v in range(tile.vectors)]
    shared = [factors and load_vector(builder, factors, tile.vector, p) for p in places]
    results = []
    for r in range(tile.rows):
        for v, place in enumerate(places):
            register = old[r * tile.vectors + v]
            results.append(step(builder, register, load(r, place), shared[v]))
    return results


def _plain(step: Step, factored: bool) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, x, row_stride, *factors = values
        kind = signature.args[0]
        w = factors[0] if factors else None

        def load(r: int, place: Any) -> Any:
            row = builder.gep(x, [builder.mul(row_stride, word(r))])
            return load_vector(builder, row, kind.vector, place)

        return pack(builder, _stepped(builder, kind, step, load, w, unpack(builder, tile)))

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


def _windowed(step: Step, neutral: float, factored: bool) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, x, inside, first, along, columns, stride, *factors = values
        kind = signature.args[0]
        window = Window(builder, kind, x, first, along, columns, stride)
        w = factors[0] if factors else None

        nothing = splat(builder, ir.Constant(kind.vector.element, neutral), kind.vector)

        def plain(old: Sequence[Any]) -> list[Any]:
            rows = window.pointers()
            return _stepped(
                builder, kind, step, lambda r, p: load_vector(builder, rows[r], kind.vector, p), w, old
            )

        def edge(old: Sequence[Any]) -> list[Any]:
            rows = [window.column(r) for r in range(kind.rows)]

            def load(r: int, place: Any) -> Any:
                row, there = window.pointer(rows[r]), window.is_inside(rows[r])
                return load_vector_if(builder, there, row, place, nothing)

            return _stepped(builder, kind, step, load, w, old)

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
add_product_columns_window = _windowed(_product, 0.0, factored=True)
add_columns_window = _windowed(_sum, 0.0, factored=False)
maximum_columns_window = _windowed(_greatest, -math.inf, factored=False)
minimum_columns_window = _windowed(_least, math.inf, factored=False)
