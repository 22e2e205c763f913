"""Products of unsigned with signed bytes, summed in int32: few rows with one packed panel.

A panel's row holds four consecutive k of each column side by side, as the dot-product instructions
of recent processors take them. Elsewhere the four are unpacked and multiplied one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cpu import machine
from tilewright_kernels.cpu.chains import chained_sums
from tilewright_kernels.cpu.intrinsics import literal_intrinsic
from tilewright_kernels.cpu.panels import parts
from tilewright_kernels.cpu.values import I32, call_intrinsic
from tilewright_kernels.cpu.vectors import splat, word

GROUP = 4  # bytes whose products one lane adds up
BITS = 8


def dot(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """total + the products of four unsigned bytes of `left` with four signed ones of `right`."""
    vector = total.type
    if machine.multiplies_bytes() and vector.count == machine.lanes(I32.width):
        name = f"llvm.x86.avx512.vpdpbusd.{vector.count * I32.width}"
        return call_intrinsic(builder, name, vector, [total, left, right])
    for b in range(GROUP):
        up, down = (ir.Constant(vector, [n] * vector.count) for n in (24 - BITS * b, 24))
        x, y = builder.shl(left, up), builder.shl(right, up)
        product = builder.mul(builder.lshr(x, down), builder.ashr(y, down))
        total = builder.add(total, product)
    return total


@dataclass(frozen=True)
class _Part:
    """Where a part of the product reads its operands: pointers to groups of four bytes."""

    builder: Any
    vector: Any
    rows: Sequence[Any]
    panel: Any
    width: int  # of the panel, in columns
    columns: Sequence[int]

    def _load(self, index: Any) -> Any:
        place = self.builder.gep(self.panel, [index])
        return self.builder.load(self.builder.bitcast(place, self.vector.as_pointer()), align=1)

    def step(self, k: Any, registers: Sequence[Any]) -> list[Any]:
        builder = self.builder
        first = builder.mul(k, word(self.width))
        columns = [self._load(builder.add(first, word(c))) for c in self.columns]
        results = []
        for r, row in enumerate(self.rows):
            group = splat(builder, builder.load(builder.gep(row, [k]), align=1), self.vector)
            for v, column in enumerate(columns):
                results.append(dot(builder, registers[r * len(columns) + v], group, column))
        return results


@literal_intrinsic
def byte_product(
    typing: Any,
    rows: Any,
    vectors: Any,
    out: Any,
    out_stride: Any,
    a: Any,
    row_stride: Any,
    b: Any,
    groups: Any,
) -> Any:
    """out = A @ B in int32, for A of so many rows of unsigned bytes and a panel B of signed ones,
    so many vectors wide; both are `groups` times four deep.
    """
    height, across = rows.literal_value, vectors.literal_value
    part = parts(height, across)
    lanes = machine.lanes(I32.width)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, _, target, target_stride, left, stride, panel, count = values
        vector, pointer = ir.VectorType(I32, lanes), I32.as_pointer()
        words = builder.bitcast(panel, pointer)
        for top in range(0, height, part.rows):
            used = range(top, min(top + part.rows, height))
            starts = [builder.gep(left, [builder.mul(stride, word(r))]) for r in used]
            pointers = [builder.bitcast(s, pointer) for s in starts]
            for start in range(0, across, part.vectors):
                last = min(start + part.vectors, across)
                columns = [v * lanes for v in range(start, last)]
                here = _Part(builder, vector, pointers, words, across * lanes, columns)
                zeros = [vector(None)] * (len(used) * len(columns))
                sums = iter(chained_sums(builder, here.step, zeros, count, part.chains))
                for r in used:
                    row = builder.mul(target_stride, word(r))
                    for c in columns:
                        place = builder.gep(target, [builder.add(row, word(c))])
                        store = builder.bitcast(place, vector.as_pointer())
                        builder.store(next(sums), store, align=I32.width // BITS)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, vectors, out, i64, a, i64, b, i64), emit
