"""Arrays of other libraries on an emulated device: like PyTorch's, CuPy's and Numba's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from emulated_device import EmulatedDevice
from tilewright.runtime.cuda.dlpack import CUDA, make_capsule, read_capsule

Array = np.ndarray[Any, Any]


class Foreign:
    """Elements that some stream writes, in memory that somebody else owns."""

    def __init__(
        self, device: EmulatedDevice, array: Array, stream: int, shift: int = 0, late: bool = True
    ) -> None:
        self.device, self.shape, self.dtype = device, array.shape, array.dtype
        self.strides: tuple[int, ...] | None = None
        self.made_on = stream
        with device.on(stream):
            self.memory = device.allocate(max(1, array.nbytes + shift))
            self.address = self.memory.address + shift
            if array.nbytes:
                device.write(self.address, array)
            if not late:
                device.finish()
            self.mark = device.mark()
        self.asked: list[Any] = []

    def order(self, stream: int) -> None:
        """Makes a stream wait for the elements."""
        with self.device.on(stream):
            self.device.wait(self.mark)


class Tensor(Foreign):
    """By DLPack; `requires_grad` refuses, as PyTorch's tensors do."""

    requires_grad = False
    place: tuple[int, int] | None = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place or (CUDA, self.device.index)

    def __dlpack__(self, stream: int | None = None) -> Any:
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        self.asked.append(stream)
        assert stream, "a stream must be named, and 0 is ambiguous"
        self.order(stream)
        return make_capsule(self.address, self.shape, self.dtype, self.__dlpack_device__(), self)


Tensor.__module__ = "torch"


class NumbaArray(Foreign):
    """By the CUDA array interface alone."""

    names_stream = True

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.strides,
            "version": 3,
            "stream": self.made_on if self.names_stream else None,
        }


def torch_module(stream: int) -> Any:
    """What is asked of PyTorch, with this current stream."""
    current = SimpleNamespace(cuda_stream=stream)
    return SimpleNamespace(cuda=SimpleNamespace(current_stream=lambda device=None: current))


class CupyModule:
    """What is asked of CuPy, on an emulated device."""

    def __init__(self, device: EmulatedDevice, stream: int = 1) -> None:
        self.device, self.allocated = device, 0
        stream_of = lambda number: device.on(number)  # noqa: E731
        self.cuda = SimpleNamespace(
            UnownedMemory=lambda *parts: SimpleNamespace(ptr=parts[0], owner=parts[2]),
            MemoryPointer=lambda memory, offset: SimpleNamespace(memory=memory, offset=offset),
            ExternalStream=stream_of,
            alloc=self._allocate,
            get_current_stream=lambda: SimpleNamespace(ptr=stream),
        )
        self.ndarray = CupyArray

    def _allocate(self, nbytes: int) -> Any:
        memory = self.device.allocate(nbytes)
        self.allocated += nbytes
        return SimpleNamespace(ptr=memory.address, memory=memory)


class CupyArray:
    """What `cupy.ndarray` remembers of its arguments."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, pointer: Any) -> None:
        self.shape, self.dtype, self.pointer = shape, np.dtype(dtype), pointer
        self.address = pointer.memory.ptr + pointer.offset


CupyArray.__module__ = "cupy"


def elements(device: EmulatedDevice, capsule: Any) -> Array:
    """What a consumer finds behind a capsule, which it then lets go."""
    found = read_capsule(capsule)
    made = np.empty(found.shape, found.dtype)
    device.read(found.address, made)
    return made
