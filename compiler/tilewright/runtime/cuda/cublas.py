"""NVIDIA's library for products of matrices, by way of CuPy."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import DeviceError
from tilewright.schedule.library import Gemm, Matrix

TYPES = {DType.F32: 0, DType.F16: 2, DType.BF16: 14}  # cudaDataType
COMPUTE_F32 = 68  # CUBLAS_COMPUTE_32F
WHOLE_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, and no TF32
PLAIN, TURNED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
DEFAULT = -1  # CUBLAS_GEMM_DEFAULT


class Cublas:
    """cuBLAS on the device that is current, called for the current stream.

    It has a handle of its own, so that settings of CuPy (TF32) do not count. Equal calls have equal
    results, bit for bit, as NVIDIA promises for one version, one kind of GPU and one stream at
    a time.
    """

    def __init__(self, cupy: Any, library: Any) -> None:
        self._cupy, self._library = cupy, library
        self._handle = library.create()
        library.setMathMode(self._handle, WHOLE_SUMS)
        self.version = dotted(library.getVersion(self._handle))
        self._numbers = np.array([1.0, 0.0], np.float32)  # alpha and beta
        self._lock = threading.Lock()  # a call sets the handle's stream

    @classmethod
    def find(cls, cupy: Any) -> Cublas | None:
        """The library, if this CuPy finds it."""
        try:
            return cls(cupy, import_module("cupy_backends.cuda.libs.cublas"))
        except Exception:  # not installed, or made for another CUDA
            return None

    def gemm(self, gemm: Gemm, words: list[int], stream: int) -> None:
        """Puts the product into the stream; `words` are the addresses of the parameters.

        Raises DeviceError with the library's own message.
        """
        try:
            with self._lock, self._cupy.cuda.ExternalStream(stream):
                self._library.gemmStridedBatchedEx(self._handle, *self._arguments(gemm, words))
        except Exception as error:
            raise DeviceError(f"cuBLAS refuses {gemm}: {error}") from error

    def _arguments(self, g: Gemm, words: list[int]) -> list[Any]:
        """Of a library whose matrices lie column by column: it computes the transposed product."""
        one = self._numbers.ctypes.data
        zero = one + self._numbers.itemsize
        b, a = _turned(g.b), _turned(g.a)
        return [
            *(b[0], a[0], g.columns, g.rows, g.depth, one),
            *(words[g.b.slot], TYPES[g.b.dtype], _at_least(b[1], g.columns, g.depth, b[0])),
            *(g.b.batch, words[g.a.slot], TYPES[g.a.dtype]),
            *(_at_least(a[1], g.depth, g.rows, a[0]), g.a.batch, zero),
            *(words[g.c.slot], TYPES[g.c.dtype], max(g.c.row, g.columns), g.c.batch, g.batch),
            *(COMPUTE_F32, DEFAULT),
        ]


def _turned(m: Matrix) -> tuple[int, int]:
    """How a library reads a matrix's transpose, and its leading dimension."""
    return (PLAIN, m.row) if m.column == 1 else (TURNED, m.column)


def _at_least(leading: int, rows: int, columns: int, how: int) -> int:
    """The leading dimension where a single row or column leaves it open."""
    return max(leading, rows if how == PLAIN else columns)


def dotted(number: int) -> str:
    """A version as people write it: 130101 is 13.1.1."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
