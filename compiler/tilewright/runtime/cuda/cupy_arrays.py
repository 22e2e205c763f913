"""CuPy, where it is installed: results as its arrays, memory from its pool."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.cublas import Cublas


@dataclass(frozen=True)
class CupyMemory:
    """Memory of CuPy's pool, which gets it back with the last reference."""

    address: int
    pointer: Any


class CupyArrays:
    """What this package takes from CuPy."""

    def __init__(self, module: Any) -> None:
        self._cupy = module

    @classmethod
    def find(cls) -> CupyArrays | None:
        """CuPy, if it is installed and works here."""
        try:
            module = import_module("cupy")
            module.cuda.runtime.getDeviceCount()
        except Exception:  # not installed, or made for another CUDA
            return None
        return cls(module)

    def allocate(self, nbytes: int, stream: int) -> CupyMemory:
        """Memory for work in a stream, from the allocator that CuPy's own arrays use."""
        with self._cupy.cuda.ExternalStream(stream):
            pointer = self._cupy.cuda.alloc(nbytes)
        return CupyMemory(int(pointer.ptr), pointer)

    def cublas(self) -> Cublas | None:
        """NVIDIA's library for products, if CuPy finds it."""
        return Cublas.find(self._cupy)

    def wrap(self, array: DeviceArray) -> Any:
        """The array as one of CuPy's; as it is, if CuPy lacks the element type."""
        if array.dtype.kind not in "biuf":
            return array
        cuda = self._cupy.cuda
        nbytes = max(1, array.nbytes)
        memory = cuda.UnownedMemory(array.address, nbytes, array.owner, array.device.index)
        return self._cupy.ndarray(array.shape, array.dtype, cuda.MemoryPointer(memory, 0))
