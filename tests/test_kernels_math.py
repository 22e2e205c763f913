"""Scalar functions against NumPy in double precision, and their stated accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from kernels_harness import elementwise
from tilewright_kernels.cpu import machine
from tilewright_kernels.cpu.math import ACCURACY

Array = np.ndarray[Any, Any]
Reference = Callable[..., Array]

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 2, -2, 1e-45, -1e-45, 1e-38]
SPECIAL += [1.1754944e-38, 3.4028235e38, -3.4028235e38, 88.72, 88.73, -87.34, -103.9, -104.1, 8e15]


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


UNARY: dict[str, Reference] = {
    "reciprocal": lambda x: 1 / x,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "trunc": np.trunc,
    "abs": np.abs,
    "sign": np.sign,
}
BINARY: dict[str, Reference] = {
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.fmod,
    "floor_mod": np.mod,
}
SCALAR_CALLS = {"mod", "floor_mod"}


@cache
def arguments(name: str) -> Array:
    """Special values, every 16411th bit pattern, and where the functions are not trivial."""
    patterns = np.arange(0, 2**32, 16411, dtype=np.uint64).astype(np.uint32).view(np.float32)
    close = [np.linspace(-limit, limit, 30011) for limit in (1.6, 20.0, 110.0)]
    if name == "erf":  # its reference is slow
        patterns, close = patterns[::16], [c[::8] for c in close]
    with np.errstate(invalid="ignore"):  # some of the patterns are signalling NaNs
        return np.concatenate([SPECIAL, *close, patterns]).astype(np.float32)


def argument_pairs() -> tuple[Array, Array]:
    values = np.array([*SPECIAL, 3, -3, 2.5, 16777217, -16777215, 0.99999994], np.float32)
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    random = np.random.default_rng(0)
    base = np.exp(random.uniform(-20, 20, 20000)).astype(np.float32)
    exponent = random.uniform(-30, 30, 20000).astype(np.float32)
    whole = np.rint(exponent)
    return np.concatenate([x, base, -base]), np.concatenate([y, exponent, whole])


def error_in_ulps(result: Array, exact: Array) -> Array:
    """Distance from the exact result in units of its last place; infinite for a wrong special."""
    rounded = exact.astype(np.float32)
    ordinary = np.isfinite(rounded) & np.isfinite(result)
    same = (rounded == result) | (np.isnan(rounded) & np.isnan(result))
    unit = np.spacing(np.abs(rounded)).astype(np.float64)
    distance = np.abs(result.astype(np.float64) - exact) / unit
    return np.where(ordinary, distance, np.where(same, 0.0, np.inf))


def call(name: str, *inputs: Array) -> Array:
    """NAME applied to the arrays by a kernel."""
    kind = "f32" if inputs[0].dtype == np.float32 else "f64"
    function = f"{name}_{kind}"
    operands = ", ".join(f"x{i}[i]" for i in range(len(inputs)))
    kinds = " ".join([kind] * len(inputs))
    kernel = elementwise(f"{function}({operands})", f"math.{function}", kinds, kind)
    result = np.full_like(inputs[0], 77)
    kernel(result, *inputs, result.size)
    return result


def test_every_function_states_its_accuracy() -> None:
    assert set(ACCURACY) == set(UNARY) | set(BINARY)


@pytest.mark.parametrize("name", UNARY)
def test_float32(name: str) -> None:
    x = arguments(name)
    with np.errstate(all="ignore"):
        errors = error_in_ulps(call(name, x), UNARY[name](x.astype(np.float64)))
    worst = int(np.argmax(errors))
    assert errors[worst] <= ACCURACY[name], f"{name}({x[worst]!r})"


@pytest.mark.parametrize("name", BINARY)
def test_float32_of_two(name: str) -> None:
    x, y = argument_pairs()
    with np.errstate(all="ignore"):
        # NumPy's own rounding of `mod` is part of its definition: it adds y to a rounded remainder.
        wide = np.float32 if name == "floor_mod" else np.float64
        exact = BINARY[name](x.astype(wide), y.astype(wide)).astype(np.float64)
        errors = error_in_ulps(call(name, x, y), exact)
    worst = int(np.argmax(errors))
    assert errors[worst] <= ACCURACY[name], f"{name}({x[worst]!r}, {y[worst]!r})"


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_float64(name: str) -> None:
    random = np.random.default_rng(1)
    x = np.concatenate([SPECIAL, random.normal(0, 1, 500), random.normal(0, 100, 500)])
    operands = (x,) if name in UNARY else (x, random.permutation(x))
    with np.errstate(all="ignore"):
        expected = {**UNARY, **BINARY}[name](*operands)
    np.testing.assert_allclose(call(name, *operands), expected, rtol=2e-15, atol=1e-320)


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", ["isnan", "isinf"])
def test_predicates(name: str, kind: str) -> None:
    x = np.array(SPECIAL, np.float32 if kind == "f32" else np.float64)
    function = f"{name}_{kind}"
    result = np.full(x.shape, 77, np.uint8)
    kernel = elementwise(f"to_u8({function}(x0[i]))", f"math.{function} casts.to_u8", kind, "u8")
    kernel(result, x, x.size)
    np.testing.assert_array_equal(result, {"isnan": np.isnan, "isinf": np.isinf}[name](x))


@pytest.mark.skipif(machine.vector_bytes() < 32, reason="needs registers that tell vectors apart")
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_loops_over_float32_are_vectorised(name: str) -> None:
    if name in SCALAR_CALLS:
        pytest.skip("calls libm")
    operands = "x0[i]" if name in UNARY else "x0[i], x1[i]"
    kinds = "f32" if name in UNARY else "f32 f32"
    kernel = elementwise(f"{name}_f32({operands})", f"math.{name}_f32", kinds, "f32")
    assert re.search(r"v\w+ps\s.*%[yz]mm", kernel.assembly)
