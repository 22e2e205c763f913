"""ONNX's tensor messages to NumPy arrays; declared sizes are compared with the data first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, numpy_helper

from tilewright.dtypes import DType, from_onnx
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.external import read_external
from tilewright.graph.ir import Array

Bytes = NDArray[np.uint8]

DENSE_LIMIT = 1 << 30
"""A sparse tensor may not become more than this many bytes when it is written out in full."""

_TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "double_data",
    "string_data",
)


def element_type(code: int, what: str) -> DType:
    """The element type of an ONNX code; `what` names the value in the error."""
    try:
        return from_onnx(code)
    except KeyError:
        names = {number: text for text, number in TensorProto.DataType.items()}
    if code in names and code != TensorProto.UNDEFINED:
        raise UnsupportedError(f"{what} has elements of type {names[code]}, not supported here")
    raise ModelError(f"{what} has the element type {code}, which ONNX does not define")


def to_array(tensor: TensorProto, folder: Path | None = None, raw: Bytes | None = None) -> Array:
    """The tensor's value, read-only and without a copy where its bytes allow that.

    `raw` is what its `raw_data` stands for, if not itself; data in other files is looked for in
    `folder`. Text becomes an object array of `str` (of `bytes` where it is not UTF-8).
    """
    what = f"tensor {tensor.name!r}"
    dtype = element_type(tensor.data_type, what)
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape) or math.prod(d or 1 for d in shape) >= 1 << 58:
        raise ModelError(f"{what} declares the impossible shape {list(shape)}")
    if tensor.HasField("segment"):
        raise UnsupportedError(f"{what} is a segment of a larger tensor")
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = read_external(tensor, folder)
    elif tensor.HasField("raw_data") and raw is None:
        raw = np.frombuffer(tensor.raw_data, np.uint8)
    count = math.prod(shape)
    if raw is None:
        array = _from_fields(tensor, dtype, count, what)
    else:
        array = _from_bytes(raw, dtype, count, what)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _from_bytes(raw: Bytes, dtype: DType, count: int, what: str) -> Array:
    """Little-endian bytes to elements; types below a byte are packed, the first one lowest."""
    if dtype is DType.STRING:
        raise ModelError(f"{what} holds text as raw bytes, which ONNX does not allow")
    needed = (count * min(dtype.bits, 8 * dtype.itemsize) + 7) // 8
    if dtype.bits >= 8:
        needed = count * dtype.itemsize
    if len(raw) != needed:
        raise ModelError(f"{what} has {len(raw)} bytes of data where its shape needs {needed}")
    if dtype.bits < 8:
        return _unpack(raw, dtype, count)
    array: Array = raw.view(dtype.numpy.newbyteorder("<")).astype(dtype.numpy, copy=False)
    return array if array.flags.aligned else array.copy()


def _unpack(raw: Bytes, dtype: DType, count: int) -> Array:
    """One element a byte, as ml_dtypes stores them."""
    shifts = np.arange(0, 8, dtype.bits, dtype=np.uint8)
    codes = ((raw[:, None] >> shifts) & (2**dtype.bits - 1)).reshape(-1)[:count]
    if dtype.kind == "i":
        signs = 1 << (dtype.bits - 1)
        codes = (codes.astype(np.int8) ^ signs) - signs
    array: Array = codes.view(dtype.numpy) if dtype.is_float else codes.astype(dtype.numpy)
    return array


def _from_fields(tensor: TensorProto, dtype: DType, count: int, what: str) -> Array:
    stored = max(len(getattr(tensor, name)) for name in _TYPED_FIELDS)
    per_element = 2 if dtype.kind == "c" else 1
    packed = (count * dtype.bits + 7) // 8 if dtype.bits < 8 and dtype is not DType.BOOL else count
    if stored != packed * per_element:
        raise ModelError(f"{what} has {stored} data entries where its shape needs {packed}")
    if dtype is DType.STRING:
        return np.array([_text(s) for s in tensor.string_data], dtype=object)
    try:
        return np.array(numpy_helper.to_array(tensor), dtype=dtype.numpy).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{what} cannot be read: {error}") from None


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def sparse_to_array(sparse: SparseTensorProto, folder: Path | None = None) -> Array:
    """The sparse tensor written out in full; indices are flat positions or one row per element."""
    name = sparse.values.name
    values, indices = to_array(sparse.values, folder), to_array(sparse.indices, folder)
    shape = tuple(sparse.dims)
    if values.dtype == object:
        raise UnsupportedError(f"sparse tensor {name!r} holds text")
    if any(d < 0 for d in shape) or math.prod(shape) * values.itemsize > DENSE_LIMIT:
        raise ModelError(f"sparse tensor {name!r} of shape {list(shape)} is too large to write out")
    flat = _flat_positions(indices, shape, name)
    if values.ndim != 1 or len(flat) != len(values):
        raise ModelError(f"sparse tensor {name!r} has {len(flat)} indices for {values.size} values")
    dense: Array = np.zeros(math.prod(shape), values.dtype)
    dense[flat] = values
    dense.flags.writeable = False
    return dense.reshape(shape)


def _flat_positions(indices: Array, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    extents = np.array(shape, np.int64) if indices.ndim == 2 else np.array([math.prod(shape)])
    rows = indices if indices.ndim == 2 else indices.reshape(-1, 1)
    if rows.dtype != np.int64 or rows.shape[1] != len(extents):
        raise ModelError(f"sparse tensor {name!r} has indices of the wrong form")
    if ((rows < 0) | (rows >= extents)).any():
        raise ModelError(f"sparse tensor {name!r} has an index outside its shape {list(shape)}")
    flat = np.zeros(len(rows), np.int64)
    for axis, extent in enumerate(extents):
        flat = flat * extent + rows[:, axis]
    return flat
