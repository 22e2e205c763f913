"""Random values, made on the host. A seed makes them reproducible; without one every run differs.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import DType, from_numpy, from_onnx
from tilewright.ops.registry import host_op


def _generator(seed: float | None) -> np.random.Generator:
    return np.random.default_rng(None if seed is None else abs(hash(float(seed))))


def _dtype(code: int | None, like: np.ndarray | None = None) -> np.dtype:  # type: ignore[type-arg]
    if code:
        return from_onnx(code).numpy
    return from_numpy(like.dtype).numpy if like is not None else DType.F32.numpy


@host_op("RandomNormal")
def random_normal(
    *, shape: Sequence[int], mean: float = 0.0, scale: float = 1.0, seed: float | None = None, dtype: int = 1
) -> np.ndarray:
    return _generator(seed).normal(mean, scale, tuple(shape)).astype(_dtype(dtype))


@host_op("RandomUniform")
def random_uniform(
    *, shape: Sequence[int], low: float = 0.0, high: float = 1.0, seed: float | None = None, dtype: int = 1
) -> np.ndarray:
    return _generator(seed).uniform(low, high, tuple(shape)).astype(_dtype(dtype))


@host_op("RandomNormalLike")
def random_normal_like(
    x: np.ndarray, *, mean: float = 0.0, scale: float = 1.0, seed: float | None = None, dtype: int | None = None
) -> np.ndarray:
    return _generator(seed).normal(mean, scale, x.shape).astype(_dtype(dtype, x))


@host_op("RandomUniformLike")
def random_uniform_like(
    x: np.ndarray, *, low: float = 0.0, high: float = 1.0, seed: float | None = None, dtype: int | None = None
) -> np.ndarray:
    return _generator(seed).uniform(low, high, x.shape).astype(_dtype(dtype, x))


@host_op("Bernoulli")
def bernoulli(x: np.ndarray, *, seed: float | None = None, dtype: int | None = None) -> np.ndarray:
    return (_generator(seed).random(x.shape) < x).astype(_dtype(dtype, x))


@host_op("Multinomial")
def multinomial(
    x: np.ndarray, *, sample_size: int = 1, seed: float | None = None, dtype: int = 6
) -> np.ndarray:
    odds = np.exp(x - x.max(-1, keepdims=True))
    edges = np.cumsum(odds / odds.sum(-1, keepdims=True), -1)
    draws = _generator(seed).random((x.shape[0], sample_size))
    return (draws[:, :, None] > edges[:, None, :]).sum(-1).astype(_dtype(dtype))
