"""Sigmoid and tanh as quotients: near the exact values everywhere, and ONNX Runtime's bits."""

from __future__ import annotations

import numpy as np
import pytest

from kernels_harness import elementwise
from operator_oracle import runtime
from tilewright_kernels.cpu import machine

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 18.5, -18.5, 9.1, -9.1, 1e-30, -3e38]
X = np.array([*SPECIAL, *np.random.default_rng(0).normal(0, 4, 40_000)], np.float32)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_quotients(name: str) -> None:
    kernel = elementwise(f"rational_{name}_f32(x0[i])", f"math.rational_{name}_f32", "f32", "f32")
    y = np.empty_like(X)
    kernel(y, X, len(X))
    wide = X.astype(np.float64)
    exact = np.tanh(wide) if name == "tanh" else 0.5 + 0.5 * np.tanh(wide / 2)
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-7)
    if machine.has_feature("fma"):
        finite = np.isfinite(X)
        (wanted,) = runtime(name.capitalize(), [X])
        np.testing.assert_array_equal(y[finite], wanted[finite])
