"""DLPack capsules, read and made: how libraries pass arrays to each other without a copy.

https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64
from ctypes import c_void_p as pointer
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
DEVICE_NAMES = {4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI", 15: "WebGPU"}
NAME, USED_NAME = b"dltensor", b"used_dltensor"

_INTEGER, _UNSIGNED, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
_BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
_CODES = {"i": _INTEGER, "u": _UNSIGNED, "f": _FLOAT, "b": _BOOL}
_KINDS = {code: kind for kind, code in _CODES.items() if kind != "b"}


class _Tensor(Structure):
    _fields_ = (
        ("data", pointer),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", pointer), ("deleter", _Deleter))

_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, pointer, c_char_p, pointer)(("PyCapsule_New", _api))
_get = ctypes.PYFUNCTYPE(pointer, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, c_char_p)(("PyCapsule_SetName", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, c_char_p)(("PyCapsule_IsValid", _api))


@dataclass(frozen=True, eq=False)
class Imported:
    """An array of another library, whose memory the `owner` holds.

    `strides` are in elements, None for C order.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    device: tuple[int, int]
    owner: object = None


def read_capsule(capsule: Any) -> Imported:
    """Takes the array out of a capsule, which nobody else can do then.

    Raises TypeError for what is no capsule or has been taken, and for element types that NumPy
    and ml_dtypes lack.
    """
    if not _is_valid(capsule, NAME):
        raise TypeError("this is no DLPack capsule, or somebody has taken the array")
    place = _get(capsule, NAME)
    fields = _LAYOUT.unpack(ctypes.string_at(place, _LAYOUT.size))
    data, kind, number, rank, code, bits, lanes, extents, steps, offset, _, deleter = fields
    dtype = _dtype(code, bits, lanes)
    shape = _integers(extents, rank)
    strides = _integers(steps, rank) if steps else None
    _rename(capsule, USED_NAME)
    owner = _Taken(place, deleter)
    return Imported(data + offset, shape, strides, dtype, (kind, number), owner)


_LAYOUT = struct.Struct("=QiiiBBHQQQQQ")  # of _Managed, whose fields are all aligned


def _integers(place: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"={count}q", ctypes.string_at(place, 8 * count)) if count else ()


class _Taken:
    """Lets go of the array of a capsule with the last reference."""

    def __init__(self, place: int, deleter: int) -> None:
        self._place, self._deleter = place, deleter

    def __del__(self) -> None:
        if self._deleter:
            _Deleter(self._deleter)(ctypes.cast(self._place, POINTER(_Managed)))


def _dtype(code: int, bits: int, lanes: int) -> np.dtype[Any]:
    if lanes == 1 and bits % 8 == 0:
        if code in _KINDS:
            return np.dtype(_KINDS[code] + str(bits // 8))
        if (code, bits) == (_BFLOAT, 16):
            return _BFLOAT16
        if (code, bits) == (_BOOL, 8):
            return np.dtype(np.bool_)
    raise TypeError(f"elements of DLPack's type {code} with {bits} bits in {lanes} lanes")


def make_capsule(
    address: int, shape: Sequence[int], dtype: np.dtype[Any], device: tuple[int, int], owner: object
) -> Any:
    """A capsule of a C-contiguous array; `owner` is held until whoever takes the array lets go."""
    extents = (c_int64 * len(shape))(*shape)
    steps = (c_int64 * len(shape))(*_row_major(shape))
    managed = _Managed()
    code = _BFLOAT if dtype == _BFLOAT16 else _CODES[dtype.kind]
    managed.tensor = _Tensor(
        address, *device, len(shape), code, dtype.itemsize * 8, 1, extents, steps, 0
    )
    managed.deleter = _delete
    place = ctypes.addressof(managed)
    _exported[place] = managed, extents, steps, owner
    return _new(place, NAME, ctypes.cast(_destroy, pointer))


def _row_major(shape: Sequence[int]) -> list[int]:
    steps = [1] * len(shape)
    for k in range(len(shape) - 2, -1, -1):
        steps[k] = steps[k + 1] * shape[k + 1]
    return steps


_exported: dict[int, Any] = {}
"""What capsules point to, by address, until it is released."""


def _let_go(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _destroy_capsule(capsule: int) -> None:
    """When a capsule dies: whose array nobody took, that array is released."""
    if _valid_at(capsule, NAME):
        _exported.pop(int(_pointer_at(capsule, NAME)), None)


_delete = _Deleter(_let_go)
_destroy = ctypes.PYFUNCTYPE(None, pointer)(_destroy_capsule)
_valid_at = ctypes.PYFUNCTYPE(ctypes.c_int, pointer, c_char_p)(("PyCapsule_IsValid", _api))
_pointer_at = ctypes.PYFUNCTYPE(pointer, pointer, c_char_p)(("PyCapsule_GetPointer", _api))
