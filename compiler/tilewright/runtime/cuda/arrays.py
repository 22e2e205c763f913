"""Arrays in a GPU's memory, as plans pass them on and callers get them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.graph.ir import Array
from tilewright.graph.remote import RemoteArray
from tilewright.runtime.crossings import TO_HOST, Crossings
from tilewright.runtime.cuda.device import VECTOR_BYTES, Device
from tilewright.runtime.cuda.dlpack import CUDA, make_capsule

NO_SYNC = -1  # DLPack: whoever takes the array orders the work himself


class DeviceArray(RemoteArray):
    """An array in C order on a GPU, ready when `mark` is reached.

    CuPy and PyTorch take it in place (`cupy.from_dlpack`, `torch.from_dlpack`, or as an argument of
    their functions by the CUDA array interface); `get()` is a copy on the host.
    """

    def __init__(
        self,
        device: Device,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        address: int,
        owner: object,
        crossings: Crossings,
    ) -> None:
        self.device, self.owner, self.crossings = device, owner, crossings
        self.shape, self.dtype, self.address = tuple(shape), np.dtype(dtype), address
        self.stream = device.stream
        self.mark: Any = None

    @classmethod
    def empty(
        cls, device: Device, shape: Sequence[int], dtype: np.dtype[Any], crossings: Crossings
    ) -> DeviceArray:
        """With arbitrary elements."""
        memory = device.allocate(max(1, prod(shape) * dtype.itemsize))
        return cls(device, shape, dtype, memory.address, memory, crossings)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device.index})"

    def ready(self) -> None:
        """What the current stream does from now on finds the elements."""
        if self.mark is not None and self.device.stream != self.stream:
            self.device.wait(self.mark)

    def fetch(self, value: str, reason: str) -> Array:
        self.crossings.add(TO_HOST, value, self.nbytes, reason)
        return self.get()

    def get(self) -> Array:
        """A copy of the elements on the host."""
        made: Array = np.empty(self.shape, self.dtype)
        if made.nbytes:
            self.ready()
            self.device.read(self.address, made)
        return made

    def copy(self) -> DeviceArray:
        made = DeviceArray.empty(self.device, self.shape, self.dtype, self.crossings)
        self.ready()
        self.device.move(made.address, self.address, self.nbytes)
        made.mark = self.device.mark()
        return made

    def rows(self) -> list[RemoteArray]:
        """Those that kernels can read are views."""
        count, shape = self.shape[0], self.shape[1:]
        size = prod(shape) * self.dtype.itemsize
        made: list[RemoteArray] = []
        for k in range(count):
            place = self.address + k * size
            row = DeviceArray(self.device, shape, self.dtype, place, self, self.crossings)
            row.stream, row.mark = self.stream, self.mark
            made.append(row.copy() if size % VECTOR_BYTES else row)
        return made

    def stacked(self, others: Sequence[RemoteArray]) -> DeviceArray:
        items = [self, *(o for o in others if isinstance(o, DeviceArray))]
        shape = (len(items), *self.shape)
        made = DeviceArray.empty(self.device, shape, self.dtype, self.crossings)
        for k, item in enumerate(items):
            item.ready()
            self.device.move(made.address + k * self.nbytes, item.address, self.nbytes)
        made.mark = self.device.mark()
        return made

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("this array is on a GPU: get() copies it to the host")

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; work that the stream gets from now on finds the elements."""
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"this array is on {self.__dlpack_device__()}, not on {dl_device}")
        source = self.copy() if copy else self
        if stream != NO_SYNC:
            with self.device.on(1 if stream in (None, 0) else stream):
                source.ready()
        place = source.address if source.nbytes else 0
        return make_capsule(place, self.shape, self.dtype, self.__dlpack_device__(), source)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.kind not in "biuf":
            raise AttributeError(f"the CUDA array interface has no {self.dtype}: use DLPack")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.nbytes else 0, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }
