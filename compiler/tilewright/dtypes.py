"""Element types: one row each. Everything that depends on the type of an element is read from
here."""

from __future__ import annotations

from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike


class DType(Enum):
    """`name = (ONNX code, NumPy dtype, kind, bits)`; kind is f(loat), i(nt), u(int), b(ool),
    c(omplex), s(tring)."""

    F32 = (1, np.dtype(np.float32), "f", 32)
    U8 = (2, np.dtype(np.uint8), "u", 8)
    I8 = (3, np.dtype(np.int8), "i", 8)
    U16 = (4, np.dtype(np.uint16), "u", 16)
    I16 = (5, np.dtype(np.int16), "i", 16)
    I32 = (6, np.dtype(np.int32), "i", 32)
    I64 = (7, np.dtype(np.int64), "i", 64)
    STRING = (8, np.dtype(np.object_), "s", 64)
    BOOL = (9, np.dtype(np.bool_), "b", 8)
    F16 = (10, np.dtype(np.float16), "f", 16)
    F64 = (11, np.dtype(np.float64), "f", 64)
    U32 = (12, np.dtype(np.uint32), "u", 32)
    U64 = (13, np.dtype(np.uint64), "u", 64)
    C64 = (14, np.dtype(np.complex64), "c", 64)
    C128 = (15, np.dtype(np.complex128), "c", 128)
    BF16 = (16, np.dtype(ml_dtypes.bfloat16), "f", 16)
    F8E4M3FN = (17, np.dtype(ml_dtypes.float8_e4m3fn), "f", 8)
    F8E4M3FNUZ = (18, np.dtype(ml_dtypes.float8_e4m3fnuz), "f", 8)
    F8E5M2 = (19, np.dtype(ml_dtypes.float8_e5m2), "f", 8)
    F8E5M2FNUZ = (20, np.dtype(ml_dtypes.float8_e5m2fnuz), "f", 8)
    U4 = (21, np.dtype(ml_dtypes.uint4), "u", 4)
    I4 = (22, np.dtype(ml_dtypes.int4), "i", 4)
    F4E2M1 = (23, np.dtype(ml_dtypes.float4_e2m1fn), "f", 4)
    F8E8M0 = (24, np.dtype(ml_dtypes.float8_e8m0fnu), "f", 8)
    U2 = (25, np.dtype(ml_dtypes.uint2), "u", 2)
    I2 = (26, np.dtype(ml_dtypes.int2), "i", 2)

    onnx: int
    numpy: np.dtype[Any]
    kind: str
    bits: int

    def __init__(self, onnx: int, numpy: np.dtype[Any], kind: str, bits: int) -> None:
        self.onnx, self.numpy, self.kind, self.bits = onnx, numpy, kind, bits

    def __repr__(self) -> str:
        return f"DType.{self.name}"

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory; types below a byte are stored one to a byte."""
        return self.numpy.itemsize

    @property
    def is_native(self) -> bool:
        """Whether kernels compute on it: the types that the hardware has, and the halves by way of
        float32."""
        return self.kind in "fiub" and self.bits >= 8 and not self.name.startswith("F8")

    @property
    def compute(self) -> DType:
        """The type that arithmetic on this one is done in."""
        return DType.F32 if self in (DType.F16, DType.BF16) else self


_BY_ONNX = {t.onnx: t for t in DType}
_BY_NUMPY = {t.numpy: t for t in DType}


def from_onnx(code: int) -> DType:
    """The row of an ONNX `TensorProto.DataType` code; KeyError if there is none."""
    return _BY_ONNX[code]


def from_numpy(dtype: DTypeLike) -> DType:
    """The row of a NumPy dtype, text of any width being STRING; KeyError if there is none."""
    found = np.dtype(dtype)
    return DType.STRING if found.kind in "SUO" else _BY_NUMPY[found.newbyteorder("=")]
