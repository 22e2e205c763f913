"""Products of bytes on register tiles: acc + A @ B with int32 sums, four steps of k at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cpu.bytes import GROUP, dot
from tilewright_kernels.cpu.intrinsics import intrinsic
from tilewright_kernels.cpu.matmul import Product
from tilewright_kernels.cpu.tile import pack, unpack
from tilewright_kernels.cpu.values import I8, I32
from tilewright_kernels.cpu.vectors import load_vector, splat, word


class _ByteProduct(Product):
    """A's rows are unsigned bytes that lie side by side along k, B's panel holds signed ones:
    four of k for each column. `k` counts fours."""

    def step(self, builder: Any, k: Any, registers: Sequence[Any]) -> list[Any]:
        tile = self.tile
        first = builder.mul(k, word(GROUP * tile.width))
        places = [builder.add(first, word(v * GROUP * tile.lanes)) for v in range(tile.vectors)]
        bytes_of_register = ir.VectorType(I8, GROUP * tile.lanes)
        loaded = [load_vector(builder, self.panel, bytes_of_register, p) for p in places]
        columns = [builder.bitcast(c, tile.vector) for c in loaded]
        along = builder.mul(k, word(GROUP))
        results = []
        for r, row in enumerate(self.rows):
            quad = builder.bitcast(builder.gep(row, [along]), I32.as_pointer())
            element = splat(builder, builder.load(quad, align=1), tile.vector)
            for v, column in enumerate(columns):
                sums = registers[r * tile.vectors + v]
                results.append(dot(builder, sums, element, column))
        return results


@intrinsic
def matmul_bytes(typing: Any, acc: Any, a: Any, row_stride: Any, b: Any, k: Any) -> Any:
    """acc + A @ B, A of unsigned bytes, B of signed ones in a panel [k / 4, columns, 4].

    A has the tile's rows, `row_stride` apart, and k columns side by side; k is a multiple of 4.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, left, stride, panel, count = values
        rows = [builder.gep(left, [builder.mul(stride, word(r))]) for r in range(acc.rows)]
        quads = builder.ashr(count, word(2))
        product = _ByteProduct(acc, rows, word(1), panel, quads)
        return pack(builder, product.emit(builder, unpack(builder, tile)))

    i64 = types.int64
    return acc(acc, a, i64, b, i64), emit
