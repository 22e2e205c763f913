"""Descriptions of tensors for hardware that copies boxes of them, in a layout of the emulator's
own: that of the driver is not public."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptx.memory import Array
from tilewright.loops.ir import TensorMap as LoopTensor

MAGIC = 0x7E4503A9
LAYOUT = struct.Struct("<QQIIII5Q4Q5I")
BYTES = 128
SWIZZLE_128 = 3
MOST_AXES, MOST_BOX, MOST_EXTENT, MOST_STRIDE = 5, 256, 1 << 32, 1 << 40
ALIGNMENT = 16  # bytes, of the tensor and of its strides


@dataclass(frozen=True)
class TensorMap:
    """`strides` are bytes, that of neighbours is `itemsize`; neighbours come first."""

    address: int
    itemsize: int
    swizzle: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]

    def problem(self) -> str:
        """What a driver refuses; empty if it takes this."""
        if not 1 <= len(self.extents) <= MOST_AXES:
            return f"{len(self.extents)} axes"
        if self.address % ALIGNMENT or any(n % ALIGNMENT for n in self.strides):
            return f"no multiples of {ALIGNMENT}: {self.address:#x}, {self.strides}"
        if not all(0 < n <= MOST_EXTENT for n in self.extents):
            return f"extents {self.extents}"
        if not all(0 <= n < MOST_STRIDE for n in self.strides):
            return f"strides {self.strides}"
        if not all(0 < n <= MOST_BOX for n in self.box):
            return f"a box of {self.box}"
        row = self.box[0] * self.itemsize
        if row % ALIGNMENT or row > self.swizzle_bytes:
            return f"{row} bytes in a row of a box"
        return ""

    @property
    def swizzle_bytes(self) -> int:
        return {0: MOST_BOX * self.itemsize, 1: 32, 2: 64, 3: 128}[self.swizzle]

    def encode(self) -> bytes:
        def padded(values: Sequence[int], count: int) -> list[int]:
            return [*values, *[0] * (count - len(values))]

        return LAYOUT.pack(
            *(MAGIC, self.address, len(self.extents), self.itemsize, self.swizzle, 0),
            *padded(self.extents, 5),
            *padded(self.strides, 4),
            *padded(self.box, 5),
        ).ljust(BYTES, b"\0")


def decode(data: bytes) -> TensorMap | None:
    """None for bytes that describe no tensor."""
    fields = LAYOUT.unpack_from(data)
    magic, address, rank, itemsize, swizzle, _, *rest = fields
    if magic != MAGIC:
        return None
    extents, strides, box = rest[:5], rest[5:9], rest[9:]
    return TensorMap(
        *(address, itemsize, swizzle, tuple(extents[:rank])),
        *(tuple(strides[: rank - 1]), tuple(box[:rank])),
    )


def words(tensor: TensorMap) -> Array:
    """The description as a kernel's parameter."""
    return np.frombuffer(tensor.encode(), np.int64).copy()


def of_loops(tensor: LoopTensor, address: int) -> TensorMap:
    """What a driver makes of a tensor whose buffer is at the address; ValueError if it refuses."""
    size = tensor.buffer.dtype.itemsize
    found = TensorMap(
        *(address + tensor.offset * size, size, SWIZZLE_128, tensor.extents),
        *(tuple(n * size for n in tensor.strides[1:]), tensor.box),
    )
    if problem := found.problem():
        raise ValueError(problem)
    return found
