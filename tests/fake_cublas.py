"""The functions of cuBLAS that this package calls, in NumPy on the memory of an emulated device.

Matrices lie column by column, as the library has it; what it would refuse is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from emulated_device import EmulatedDevice
from tilewright.runtime.cuda.cublas import Cublas

TYPES = {0: np.float32, 2: np.float16, 14: ml_dtypes.bfloat16}


class FakeCublas:
    """Stands for `cupy_backends.cuda.libs.cublas`."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device, self.calls, self.streams = device, 0, list[int]()
        self.mode = 0
        self.refuses = False

    def create(self) -> int:
        return 4711

    def setMathMode(self, handle: int, mode: int) -> None:
        self.mode = mode

    def getVersion(self, handle: int) -> int:
        return 130101

    def _matrix(self, at: int, kind: int, leading: int, rows: int, columns: int) -> Any:
        assert leading >= max(1, rows), "a leading dimension is too small"
        dtype = np.dtype(TYPES[kind])
        memory = self.device.memory
        columns_ = [
            memory.get(at + k * leading * dtype.itemsize, (rows,), dtype) for k in range(columns)
        ]
        return np.stack(columns_, axis=1).astype(np.float32)

    def gemmStridedBatchedEx(self, handle: int, *given: Any) -> None:
        (ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc, count) = (
            given[:-2]
        )
        assert handle == 4711 and given[-2:] == (68, -1) and self.mode == 16 and alpha and beta
        if self.refuses:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        assert at == bt and ct in (at, 0) and ldc >= m
        self.calls += 1
        for q in range(count):
            size, to = np.dtype(TYPES[at]).itemsize, np.dtype(TYPES[ct])
            x = self._matrix(a + q * sa * size, at, lda, *((m, k) if ta == 0 else (k, m)))
            y = self._matrix(b + q * sb * size, bt, ldb, *((k, n) if tb == 0 else (n, k)))
            z = (x if ta == 0 else x.T) @ (y if tb == 0 else y.T)
            for j in range(n):
                place = c + (q * sc + j * ldc) * to.itemsize
                self.device.memory.write(place, np.ascontiguousarray(z[:, j].astype(to)))


def install(device: EmulatedDevice) -> FakeCublas:
    """Gives the device a library."""
    fake = FakeCublas(device)
    device.library = Cublas(_cupy(fake), fake)
    return fake


class Queued(FakeCublas):
    """The same where work waits in its stream."""

    def gemmStridedBatchedEx(self, handle: int, *given: Any) -> None:
        run = super().gemmStridedBatchedEx
        with self.device.on(self.streams[-1]):
            self.device.later(lambda: run(handle, *given))

    @classmethod
    def install(cls, emulated: EmulatedDevice, device: Any) -> Queued:
        """Gives a library to the device whose driver is emulated."""
        fake = cls(emulated)
        device.__dict__["library"] = Cublas(_cupy(fake), fake)
        return fake


def _cupy(fake: FakeCublas) -> Any:
    @contextlib.contextmanager
    def stream(number: int) -> Iterator[None]:
        fake.streams.append(number)
        yield

    return SimpleNamespace(cuda=SimpleNamespace(ExternalStream=stream))
