"""Register tiles: `rows` x `vectors` SIMD registers as one Numba value.

    acc = zeros_f32(14, 2)
    acc = matmul(acc, a, row_stride, k_stride, b, k)
    store(acc, p, row_stride)

A tile is an ordinary variable of a kernel, so loops may carry it. Strides count elements.
`machine.tile_rows(vectors)` is the largest number of rows that does not spill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from tilewright_kernels.cpu import machine
from tilewright_kernels.cpu.intrinsics import intrinsic, literal_intrinsic
from tilewright_kernels.cpu.values import F32, F64, I32
from tilewright_kernels.cpu.vectors import free_registers, load_vector, store_vector, word

ELEMENTS = {types.float32: F32, types.float64: F64, types.int32: I32}


class Tile(types.Type):
    """rows x (vectors * lanes) elements, row by row in vector registers."""

    def __init__(self, dtype: Any, rows: int, vectors: int) -> None:
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        self.lanes = machine.lanes(dtype.bitwidth)
        super().__init__(f"tile({rows}x{vectors * self.lanes} {dtype})")

    @property
    def width(self) -> int:
        """Elements in a row."""
        return self.vectors * self.lanes

    @property
    def vector(self) -> Any:
        """The LLVM type of one register."""
        return ir.VectorType(ELEMENTS[self.dtype], self.lanes)

    @property
    def registers(self) -> int:
        return self.rows * self.vectors


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Tile) -> None:
        initialize: Any = super().__init__  # it has no annotations
        initialize(manager, tile, ir.ArrayType(tile.vector, tile.registers))


def unpack(builder: Any, tile: Any) -> list[Any]:
    """The registers of a tile's value."""
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def pack(builder: Any, registers: Sequence[Any]) -> Any:
    """A tile's value from its registers."""
    result = ir.Constant(ir.ArrayType(registers[0].type, len(registers)), ir.Undefined)
    for i, register in enumerate(registers):
        result = builder.insert_value(result, register, i)
    return result


def _zeros(dtype: Any) -> Any:
    @literal_intrinsic
    def zeros(typing: Any, rows: Any, vectors: Any) -> Any:
        tile = Tile(dtype, rows.literal_value, vectors.literal_value)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            free_registers(builder)
            return ir.Constant(context.get_value_type(tile), None)

        return tile(rows, vectors), emit

    return zeros


zeros_f32, zeros_f64 = _zeros(types.float32), _zeros(types.float64)
zeros_i32 = _zeros(types.int32)


def _element_index(builder: Any, tile: Tile, row_stride: Any, row: int, vector: int) -> Any:
    return builder.add(builder.mul(row_stride, word(row)), word(vector * tile.lanes))


@literal_intrinsic
def load(typing: Any, rows: Any, vectors: Any, pointer: Any, row_stride: Any) -> Any:
    """A tile of the pointer's element type, rows `row_stride` elements apart."""
    tile = Tile(pointer.dtype, rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, _, source, stride = values
        places = [(r, v) for r in range(tile.rows) for v in range(tile.vectors)]
        indices = [_element_index(builder, tile, stride, r, v) for r, v in places]
        return pack(builder, [load_vector(builder, source, tile.vector, i) for i in indices])

    return tile(rows, vectors, pointer, types.int64), emit


@intrinsic
def store(typing: Any, tile: Any, pointer: Any, row_stride: Any) -> Any:
    """Writes the whole tile, rows `row_stride` elements apart."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        registers = iter(unpack(builder, values[0]))
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                index = _element_index(builder, tile, values[2], row, vector)
                store_vector(builder, next(registers), values[1], index)
        return context.get_dummy_value()

    return types.void(tile, pointer, types.int64), emit
