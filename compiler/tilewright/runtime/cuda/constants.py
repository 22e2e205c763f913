"""Constants in a device's memory, shared by all plans of a model."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from tilewright.ops.tensor import Constant, Elements
from tilewright.runtime.cuda.device import Device, DeviceMemory


class DeviceConstants:
    """Copies of constants on one device, as long as their elements are needed on the host or a
    plan holds them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._copies: weakref.WeakKeyDictionary[Elements, DeviceMemory] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def get(self, t: Constant) -> DeviceMemory:
        """The elements as they lie in the tensor's memory order."""
        with self._lock:
            found = self._copies.get(t.elements)
            if found is None:
                found = self._copies[t.elements] = self._copied(t)
            return found

    def _copied(self, t: Constant) -> DeviceMemory:
        stored = _in_memory_order(t)
        memory = self._device.allocate(max(stored.nbytes, 1))
        self._device.write(memory.address, stored)
        self._device.finish()  # other streams use it too
        return memory


def _in_memory_order(t: Constant) -> np.ndarray:
    """All elements of a constant from its first to its last, as kernels address them."""
    if t.strides is None:
        return np.ascontiguousarray(t.value)
    value = t.value
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.strides, strict=True)) if t.size else 1
    flat = np.zeros(span, value.dtype)
    bytes_of = tuple(s * value.itemsize for s in t.strides)
    np.lib.stride_tricks.as_strided(flat, t.shape, bytes_of)[...] = value
    return flat
