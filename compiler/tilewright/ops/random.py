"""Random values, made on the host. A seed makes them reproducible; without one every run differs.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import from_numpy, from_onnx
from tilewright.ops.common import fail
from tilewright.ops.registry import host_op


def _generator(seed: float | None) -> np.random.Generator:
    """A generator for ONNX's seed: a float, every bit of which counts."""
    return np.random.default_rng(None if seed is None else int(np.float32(seed).view(np.uint32)))


def _dtype(code: int | None, like: np.ndarray) -> np.dtype[Any]:
    return from_onnx(code).numpy if code is not None else from_numpy(like.dtype).numpy


def _float_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if not from_numpy(dtype).is_float:
        raise fail(f"random values of type {dtype}: a float type is expected")
    return dtype


def _normal(
    shape: Sequence[int], mean: float, scale: float, seed: float | None, dtype: np.dtype[Any]
) -> np.ndarray:
    return _generator(seed).normal(mean, scale, tuple(shape)).astype(_float_dtype(dtype))


def _uniform(
    shape: Sequence[int], low: float, high: float, seed: float | None, dtype: np.dtype[Any]
) -> np.ndarray:
    return _generator(seed).uniform(low, high, tuple(shape)).astype(_float_dtype(dtype))


@host_op("RandomNormal")
def random_normal(
    *,
    shape: Sequence[int],
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: int = 1,
) -> np.ndarray:
    return _normal(shape, mean, scale, seed, from_onnx(dtype).numpy)


@host_op("RandomUniform")
def random_uniform(
    *,
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: int = 1,
) -> np.ndarray:
    return _uniform(shape, low, high, seed, from_onnx(dtype).numpy)


@host_op("RandomNormalLike")
def random_normal_like(
    x: np.ndarray,
    *,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: int | None = None,
) -> np.ndarray:
    return _normal(x.shape, mean, scale, seed, _dtype(dtype, x))


@host_op("RandomUniformLike")
def random_uniform_like(
    x: np.ndarray,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: int | None = None,
) -> np.ndarray:
    return _uniform(x.shape, low, high, seed, _dtype(dtype, x))


@host_op("Bernoulli")
def bernoulli(x: np.ndarray, *, seed: float | None = None, dtype: int | None = None) -> np.ndarray:
    """One where a uniform number is below the element of x, which is a probability."""
    drawn = _generator(seed).random(x.shape) < x.astype(np.float64)
    return drawn.astype(_dtype(dtype, x))


@host_op("Multinomial")
def multinomial(
    x: np.ndarray, *, sample_size: int = 1, seed: float | None = None, dtype: int = 6
) -> np.ndarray:
    """Classes drawn for each row of unnormalised log-probabilities."""
    if x.ndim != 2 or x.shape[1] == 0:
        raise fail(f"rows of at least one class are expected, not shape {x.shape}")
    wide = x.astype(np.float64)
    odds = np.exp(wide - wide.max(-1, keepdims=True))
    edges = np.cumsum(odds / odds.sum(-1, keepdims=True), -1)
    draws = _generator(seed).random((x.shape[0], sample_size))
    # The last edge may be rounded to below one; whatever passes all others is the last class.
    classes: np.ndarray = (draws[:, :, None] >= edges[:, None, :-1]).sum(-1)
    return classes.astype(from_onnx(dtype).numpy)
