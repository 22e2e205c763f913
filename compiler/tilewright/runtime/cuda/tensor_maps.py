"""Tensors described to hardware that copies boxes of them, as a driver encodes it.

Importing this module imports the driver's bindings. Theirs of this function keep the result where
Python happens to put it, but the driver wants it aligned: so it is called by its address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
from cuda.bindings import driver

from tilewright.dtypes import DType
from tilewright.errors import DeviceError
from tilewright.loops.ir import TensorMap
from tilewright.runtime.cuda.device import MAP_BYTES, MAP_WORDS

FUNCTION = b"cuTensorMapEncodeTiled"
SINCE = 12000  # the version of CUDA that has it
ALIGNMENT = 64  # bytes, of a description
_INT, _WORD = ctypes.c_uint32, ctypes.c_uint64
PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int,  # what went wrong
    ctypes.c_void_p,  # the description
    ctypes.c_int,  # type of elements
    _INT,  # axes
    ctypes.c_void_p,  # address
    ctypes.POINTER(_WORD),  # extents
    ctypes.POINTER(_WORD),  # strides in bytes, that of neighbours left out
    ctypes.POINTER(_INT),  # extents of a box
    ctypes.POINTER(_INT),  # steps within a box
    *[ctypes.c_int] * 4,  # interleaving, swizzling, promotion, filling
)
ELEMENTS = {
    DType.F16: "CU_TENSOR_MAP_DATA_TYPE_FLOAT16",
    DType.BF16: "CU_TENSOR_MAP_DATA_TYPE_BFLOAT16",
}

Encode = Callable[[TensorMap, int], np.ndarray]


def encoder() -> Encode:
    """A function of a tensor and the address of its buffer: the words that describe it."""
    status, address, *_ = driver.cuGetProcAddress(FUNCTION, SINCE, 0)
    if status != driver.CUresult.CUDA_SUCCESS or not address:
        raise DeviceError(f"the driver has no {FUNCTION.decode()}")
    function = PROTOTYPE(int(address))

    def encode(tensor: TensorMap, start: int) -> np.ndarray:
        size, rank = tensor.buffer.dtype.itemsize, len(tensor.extents)
        memory = ctypes.create_string_buffer(MAP_BYTES + ALIGNMENT)
        place = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
        status = function(
            place,
            int(getattr(driver.CUtensorMapDataType, ELEMENTS[tensor.buffer.dtype])),
            rank,
            start + tensor.offset * size,
            _array(_WORD, tensor.extents),
            _array(_WORD, [n * size for n in tensor.strides[1:]]),
            _array(_INT, tensor.box),
            _array(_INT, [1] * rank),
            int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
            int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
            int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B),
            int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        )
        if status:
            raise DeviceError(f"{FUNCTION.decode()} failed: {status}")
        found = (ctypes.c_int64 * MAP_WORDS).from_address(place)
        return np.array(found, np.int64)

    return encode


def _array(kind: type, values: Sequence[int]) -> ctypes.Array:  # type: ignore[type-arg]
    made: ctypes.Array = (kind * len(values))(*values)  # type: ignore[operator, type-arg]
    return made
