"""Products on register tiles: acc + A @ B with B packed into panels as wide as the tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import types

from tilewright_kernels.cpu.chains import chained_sums, chains_for
from tilewright_kernels.cpu.intrinsics import intrinsic
from tilewright_kernels.cpu.tile import Tile, pack, unpack
from tilewright_kernels.cpu.vectors import (
    fma,
    load_vector,
    prefetch,
    splat,
    word,
)

Hook = Callable[[Any], None]


@dataclass(frozen=True)
class Product:
    """One product's operands: where A's rows start, its stride along k, B, and k.

    The rows of B are `b_stride` elements apart; packed ones, without it, as many as the tile is
    wide.
    """

    tile: Tile
    rows: Sequence[Any]
    k_stride: Any
    panel: Any
    k: Any
    b_stride: Any = None

    def step(self, builder: Any, k: Any, registers: Sequence[Any]) -> list[Any]:
        """One k: every row's element of A, broadcast, times the panel's row."""
        tile = self.tile
        first = builder.mul(k, word(tile.width) if self.b_stride is None else self.b_stride)
        indices = [builder.add(first, word(v * tile.lanes)) for v in range(tile.vectors)]
        columns = [load_vector(builder, self.panel, tile.vector, i) for i in indices]
        along = builder.mul(k, self.k_stride)
        results = []
        for r, row in enumerate(self.rows):
            element = splat(builder, builder.load(builder.gep(row, [along])), tile.vector)
            for v, column in enumerate(columns):
                results.append(fma(builder, element, column, registers[r * tile.vectors + v]))
        return results

    def emit(self, builder: Any, registers: Sequence[Any], hook: Hook | None = None) -> list[Any]:
        """The loop over k, which may run never; `hook` emits what else each iteration does."""

        def step(k: Any, carried: Sequence[Any]) -> list[Any]:
            results = self.step(builder, k, carried)
            if hook is not None:
                hook(k)
            return results

        chains = chains_for(len(registers))
        return list(chained_sums(builder, step, registers, self.k, chains))


def _row_pointers(builder: Any, start: Any, row_stride: Any, rows: int) -> list[Any]:
    return [builder.gep(start, [builder.mul(row_stride, word(r))]) for r in range(rows)]


@intrinsic
def matmul(typing: Any, acc: Any, a: Any, row_stride: Any, k_stride: Any, b: Any, k: Any) -> Any:
    """acc + A @ B.

    A has the tile's rows, k columns and these strides; B is a panel of k rows as wide as the tile.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, left, stride, step, panel, count = values
        rows = _row_pointers(builder, left, stride, acc.rows)
        product = Product(acc, rows, step, panel, count)
        return pack(builder, product.emit(builder, unpack(builder, tile)))

    i64 = types.int64
    return acc(acc, a, i64, i64, b, i64), emit


@intrinsic
def matmul_rows(
    typing: Any,
    acc: Any,
    a: Any,
    row_stride: Any,
    k_stride: Any,
    b: Any,
    b_stride: Any,
    k: Any,
) -> Any:
    """As `matmul`, B not being packed: its rows are `b_stride` elements apart."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, left, stride, step, right, apart, count = values
        rows = _row_pointers(builder, left, stride, acc.rows)
        product = Product(acc, rows, step, right, count, apart)
        return pack(builder, product.emit(builder, unpack(builder, tile)))

    i64 = types.int64
    return acc(acc, a, i64, i64, b, i64, i64), emit


@intrinsic
def matmul_prefetch(
    typing: Any,
    acc: Any,
    a: Any,
    row_stride: Any,
    k_stride: Any,
    b: Any,
    k: Any,
    ahead: Any,
    step: Any,
) -> Any:
    """As `matmul`; iteration i also prefetches as much as it reads of B, from ahead[i * step].

    For the panel that comes next, which is otherwise late where few row tiles share a panel.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, left, stride, along, panel, count, next_panel, line = values
        rows = _row_pointers(builder, left, stride, acc.rows)
        product = Product(acc, rows, along, panel, count)

        def fetch(k: Any) -> None:
            first = builder.mul(k, line)
            for v in range(acc.vectors):
                prefetch(builder, next_panel, builder.add(first, word(v * acc.lanes)))

        return pack(builder, product.emit(builder, unpack(builder, tile), fetch))

    i64 = types.int64
    return acc(acc, a, i64, i64, b, i64, ahead, i64), emit


@intrinsic
def matmul_part(
    typing: Any, acc: Any, a: Any, row_stride: Any, k_stride: Any, b: Any, k: Any, rows: Any
) -> Any:
    """As `matmul`, reading only the first `rows` >= 1 rows of A; the others repeat the last."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, left, stride, step, panel, count, present = values
        last = builder.sub(present, word(1))
        pointers = []
        for r in range(acc.rows):
            row = builder.select(builder.icmp_signed("<", word(r), last), word(r), last)
            pointers.append(builder.gep(left, [builder.mul(stride, row)]))
        product = Product(acc, pointers, step, panel, count)
        return pack(builder, product.emit(builder, unpack(builder, tile)))

    i64 = types.int64
    return acc(acc, a, i64, i64, b, i64, i64), emit
