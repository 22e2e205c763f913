"""Values that come from shapes and numbers alone.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from math import ceil

import numpy as np

from tilewright.dtypes import from_numpy, from_onnx
from tilewright.errors import UnsupportedError
from tilewright.ops.common import cast, fail
from tilewright.ops.operands import NUMBERS, same_type
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, constant, known, known_ints


@op("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return constant(np.array(x.shape, np.int64)[start:end])


@op("Size")
def size(x: Tensor) -> Tensor:
    return constant(np.int64(x.size))


@op("ConstantOfShape")
def constant_of_shape(shape: Tensor, *, value: np.ndarray | None = None) -> Tensor:
    given = np.zeros(1, np.float32) if value is None else np.asarray(value)
    if given.size != 1:
        raise fail(f"the value is no number but of shape {given.shape}")
    dtype = from_numpy(given.dtype)
    if not dtype.is_native:
        raise UnsupportedError(f"ConstantOfShape of {dtype.name}")
    dims = known_ints(shape)
    if any(d < 0 for d in dims):
        raise fail(f"shape {dims} has a negative extent")
    number = given.ravel()[0].astype(dtype.compute.numpy).item()
    return compute(dims, lambda *i: number, dtype=dtype)


@op("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    same_type(start, limit, delta, kinds=NUMBERS)
    first, last, step = (_number(t) for t in (start, limit, delta))
    if step == 0:
        raise fail("the step is 0")
    dtype, wide = start.dtype, start.dtype.compute
    count = -((first - last) // step) if dtype.is_integer else ceil((last - first) / step)
    return compute(
        (max(int(count), 0),), lambda i: cast(dtype, cast(wide, i) * step + first), dtype=dtype
    )


def _number(t: Tensor) -> float:
    if t.size != 1:
        raise fail(f"a number is expected, not a tensor of shape {t.shape}")
    value: float = known(t).ravel()[0].astype(t.dtype.compute.numpy).item()
    return value


@op("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    target = x.dtype if dtype is None else from_onnx(dtype)
    if not target.is_native:
        raise UnsupportedError(f"EyeLike of {target.name}")
    if x.rank != 2:
        raise fail(f"a matrix is expected, not rank {x.rank}")
    return compute(x.shape, lambda i, j: cast(target, (i + k).eq(j)), dtype=target)
