"""Conversions between element types.

Source: https://onnx.ai/onnx/operators/onnx__Cast.html
"""

from __future__ import annotations

import numpy as np

from tilewright.dtypes import DType, from_numpy, from_onnx
from tilewright.errors import UnsupportedError
from tilewright.ops.common import cast as convert
from tilewright.ops.common import elementwise, fail
from tilewright.ops.registry import host_op, op
from tilewright.ops.tensor import Tensor


@op("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return _cast(x, from_onnx(to))


@op("CastLike")
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return _cast(x, target.dtype)


def _cast(x: Tensor, dtype: DType) -> Tensor:
    if x.dtype is dtype:
        return x
    if not x.dtype.is_native or not dtype.is_native:
        raise UnsupportedError(f"casts from {x.dtype.name} to {dtype.name}")
    return elementwise(lambda v: convert(dtype, v), x)


@host_op("BitCast")
def bit_cast(x: np.ndarray, *, to: int) -> np.ndarray:
    """The same bits as elements of another type."""
    source, target = from_numpy(x.dtype), from_onnx(to)
    if source.bits != target.bits or DType.STRING in (source, target):
        raise fail(f"the bits of {source.name} are not those of {target.name}")
    made: np.ndarray = x.view(target.numpy)
    return made
