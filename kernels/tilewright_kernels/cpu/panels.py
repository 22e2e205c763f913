"""Products of few rows with one packed panel, of any number of rows and vectors.

A tile that fills the registers hides the latency of its own multiplications. One of few rows does
not: its sums are split into several chains over k. One that is too large for the registers is
computed in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba import types

from tilewright_kernels.cpu import machine
from tilewright_kernels.cpu.chains import chained_sums, chains_for
from tilewright_kernels.cpu.intrinsics import literal_intrinsic
from tilewright_kernels.cpu.tile import Tile
from tilewright_kernels.cpu.vectors import (
    fma,
    load_vector,
    splat,
    store_vector,
    word,
)


@dataclass(frozen=True)
class Parts:
    """How many rows and vectors are computed at a time, and in how many chains over k."""

    rows: int
    vectors: int
    chains: int


def parts(rows: int, vectors: int) -> Parts:
    """The parts that keep the multipliers busy and then read the panel least often."""
    registers = machine.vector_registers()
    widths = {-(-vectors // n) for n in range(1, vectors + 1)}
    fitting = [(min(rows, machine.tile_rows(w)), w) for w in widths if w + 2 <= registers]

    def cost(part: tuple[int, int]) -> tuple[int, int, int]:
        down, across = -(-rows // part[0]), -(-vectors // part[1])
        loads = down * vectors + across * rows
        return max(loads, rows * vectors), down, across

    height, width = min(fitting, key=cost)
    return Parts(-(-rows // -(-rows // height)), width, chains_for(height * width))


@dataclass(frozen=True)
class _Part:
    """Where a part of the product reads its operands."""

    builder: Any
    vector: Any
    rows: Sequence[Any]  # pointers
    k_stride: Any
    panel: Any  # pointer
    width: int  # of the panel
    columns: Sequence[int]  # where its vectors start in the panel

    def step(self, k: Any, registers: Sequence[Any]) -> list[Any]:
        builder = self.builder
        first, along = builder.mul(k, word(self.width)), builder.mul(k, self.k_stride)
        columns = [
            load_vector(builder, self.panel, self.vector, builder.add(first, word(c)))
            for c in self.columns
        ]
        results = []
        for r, row in enumerate(self.rows):
            element = splat(builder, builder.load(builder.gep(row, [along])), self.vector)
            for v, column in enumerate(columns):
                results.append(fma(builder, element, column, registers[r * len(columns) + v]))
        return results


@literal_intrinsic
def panel_product(
    typing: Any,
    rows: Any,
    vectors: Any,
    out: Any,
    out_stride: Any,
    a: Any,
    row_stride: Any,
    k_stride: Any,
    b: Any,
    k: Any,
) -> Any:
    """out = A @ B, for A of so many rows and a panel B of k rows of so many vectors."""
    height, across = rows.literal_value, vectors.literal_value
    part = parts(height, across)
    lanes = machine.lanes(out.dtype.bitwidth)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, _, target, target_stride, left, stride, along, panel, count = values
        vector = Tile(out.dtype, 1, 1).vector
        for top in range(0, height, part.rows):
            used = range(top, min(top + part.rows, height))
            pointers = [builder.gep(left, [builder.mul(stride, word(r))]) for r in used]
            for start in range(0, across, part.vectors):
                group = range(start, min(start + part.vectors, across))
                columns = [v * lanes for v in group]
                here = _Part(builder, vector, pointers, along, panel, across * lanes, columns)
                zeros = [vector(None)] * (len(used) * len(group))
                sums = iter(chained_sums(builder, here.step, zeros, count, part.chains))
                for r in used:
                    row = builder.mul(target_stride, word(r))
                    for c in columns:
                        store_vector(builder, next(sums), target, builder.add(row, word(c)))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, vectors, out, i64, a, i64, i64, b, i64), emit
