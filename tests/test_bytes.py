"""Sums of products of bytes, extremes and settled constants: kernels by the interpreter, and
compiled, against whole arrays of wide integers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interpreted import Model
from tilewright.dtypes import DType
from tilewright.fusion.bytes import MAX_DEPTH
from tilewright.ops.activations import relu
from tilewright.ops.common import cast
from tilewright.ops.integer_contraction import (
    conv_integer,
    matmul_integer,
    qlinear_conv,
    qlinear_matmul,
)
from tilewright.ops.quantization import dynamic_quantize_linear
from tilewright.ops.tensor import (
    compute,
)

pytestmark = pytest.mark.avx2

PATIENT = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BYTES = (np.uint8, np.int8)
kinds = st.sampled_from(BYTES)
points = st.sampled_from(["none", "tensor", "each"])

Array = np.ndarray


def integers(dtype: Any, *shape: int, seed: int = 0) -> Array:
    """Bytes over the whole range, some rows of them extreme."""
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    values = rng.integers(limits.min, int(limits.max) + 1, shape).astype(dtype)
    if values.ndim and rng.integers(2):
        values[..., :1] = limits.min if rng.integers(2) else limits.max
    return values


@pytest.fixture
def model() -> Iterator[Model]:
    yield Model()


def zero_point(kind: Any, how: str, each: int, seed: int) -> Array | None:
    if how == "none":
        return None
    return integers(kind, *((each,) if how == "each" else ()), seed=seed)


def wide(x: Array, zero: Array | None, axis: int = -1) -> Array:
    if zero is None:
        return x.astype(np.int64)
    shape = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
    return x.astype(np.int64) - (zero.astype(np.int64).reshape(shape) if zero.ndim else int(zero))


@PATIENT
@given(
    batch=st.integers(0, 2),
    size=st.tuples(st.integers(1, 19), st.integers(1, 40), st.integers(1, 70)),
    left=kinds,
    right=kinds,
    zeros=st.tuples(points, points),
    known=st.booleans(),
    shared=st.booleans(),
)
def test_matmul(
    batch: int,
    size: tuple[int, int, int],
    left: Any,
    right: Any,
    zeros: tuple[str, str],
    known: bool,
    shared: bool,
) -> None:
    m, k, n = size
    outer = (batch,) if batch else ()
    a = integers(left, *outer, m, k)
    b = integers(right, *(() if shared else outer), k, n, seed=1)
    za = zero_point(left, "tensor" if outer and zeros[0] == "each" else zeros[0], m, 2)
    zb = zero_point(right, "tensor" if outer and zeros[1] == "each" else zeros[1], n, 3)
    model = Model()
    tensors = [model.given(a), model.given(b, known)]
    tensors += [z if z is None else model.given(z, known) for z in (za, zb)]  # type: ignore[misc]
    want = wide(a, za, -2) @ wide(b, zb)
    model.check(matmul_integer(*tensors), want.astype(np.int32), want.size * k)


@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize("depth", [4, 5, 63, 64, 129])
def test_matmuls_with_known_weights_are_on_tiles_of_bytes(
    rows: int, depth: int, model: Model
) -> None:
    a, b = integers(np.uint8, rows, depth), integers(np.int8, depth, 72, seed=1)
    tensors = [model.given(a), model.given(b, True), model.given(np.array(7, np.uint8))]
    seen = model.check(matmul_integer(*tensors), ((a.astype(int) - 7) @ b).astype(np.int32))
    assert seen["tiles of bytes"]


def test_the_largest_sums_stay_exact(model: Model) -> None:
    a, b = np.full((3, MAX_DEPTH + 1), 255, np.uint8), np.full((MAX_DEPTH + 1, 16), -128, np.int8)
    want = a.astype(np.int64) @ b
    assert want.min() > np.iinfo(np.int32).min
    model.check(matmul_integer(model.given(a), model.given(b, True)), want.astype(np.int32))


windows = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2))


def convolved(x: Array, w: Array, window: Any, group: int) -> Array:
    """By its definition; `window` has for each dimension the kernel, stride, dilation, padding."""
    pads = [(p, p) for *_, p in window]
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    out = [
        (n - (k - 1) * d - 1) // s + 1 for n, (k, s, d, _) in zip(x.shape[2:], window, strict=True)
    ]
    share, inputs = w.shape[0] // group, w.shape[1]
    result = np.zeros((x.shape[0], w.shape[0], *out), np.int64)
    for taps in np.ndindex(*w.shape[2:]):
        at = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, n, (_, s, d, _) in zip(taps, out, window, strict=True)
        )
        for g in range(group):
            pixels = x[:, g * inputs : (g + 1) * inputs, *at]
            weights = w[g * share : (g + 1) * share, :, *taps]
            part = np.einsum("ni...,oi->no...", pixels, weights)
            result[:, g * share : (g + 1) * share] += part
    return result


@PATIENT
@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    extents=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(windows, windows),
    group=st.sampled_from([1, 1, 2, 3]),
    left=kinds,
    right=kinds,
    zeros=st.tuples(st.sampled_from(["none", "tensor"]), points),
    known=st.booleans(),
    inner=st.booleans(),
)
def test_convolutions(
    batch: int,
    channels: tuple[int, int],
    extents: tuple[int, int],
    window: Any,
    group: int,
    left: Any,
    right: Any,
    zeros: tuple[str, str],
    known: bool,
    inner: bool,
) -> None:
    if any(n + 2 * p < (k - 1) * d + 1 for n, (k, _, d, p) in zip(extents, window, strict=True)):
        return
    x = integers(left, batch, group * channels[0], *extents)
    kernel, strides, dilations, pads = zip(*window, strict=True)
    w = integers(right, group * channels[1], channels[0], *kernel, seed=1)
    zx, zw = zero_point(left, zeros[0], 1, 2), zero_point(right, zeros[1], len(w), 3)
    model = Model()
    image = model.given(x)
    if inner:
        image = compute(x.shape, lambda *i: image[i], channels_last=True)
    rest = [z if z is None else model.given(z, known) for z in (zx, zw)]
    y = conv_integer(
        image,
        model.given(w, known),
        *rest,
        group=group,
        strides=strides,
        dilations=dilations,
        pads=(*pads, *pads),
    )
    want = convolved(wide(x, zx), wide(w, zw, 0), window, group)
    model.check(y, want.astype(np.int32), want.size * w[0].size)


@pytest.mark.parametrize("inputs", [1, 3, 4, 6, 16])
@pytest.mark.parametrize("kind", BYTES)
def test_convolutions_with_known_weights_are_on_tiles_of_bytes(
    inputs: int, kind: Any, model: Model
) -> None:
    x, w = integers(np.uint8, 1, inputs, 6, 5), integers(kind, 24, inputs, 3, 3, seed=1)
    zx, zw = np.array(9, np.uint8), integers(kind, 24, seed=3)
    tensors = [model.given(x), model.given(w, True), model.given(zx), model.given(zw, True)]
    window = ((3, 1, 1, 1), (3, 2, 1, 1))
    y = conv_integer(*tensors, strides=(1, 2), pads=(1, 1, 1, 1))
    want = convolved(wide(x, zx), wide(w, zw, 0), window, 1)
    assert model.check(y, want.astype(np.int32))["tiles of bytes"]


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_windows_of_one_pixel_are_on_tiles_of_bytes(strides: tuple[int, int], model: Model) -> None:
    x, w = integers(np.uint8, 1, 16, 6, 5), integers(np.int8, 24, 16, 1, 1, seed=1)
    y = conv_integer(model.given(x), model.given(w, True), strides=strides)
    want = convolved(wide(x, None), wide(w, None), ((1, strides[0], 1, 0),) * 2, 1)
    assert model.check(y, want.astype(np.int32))["tiles of bytes"]


def requantised(total: Array, scale: Array, zero: Array, dtype: Any) -> Array:
    limits = np.iinfo(dtype)
    shifted = np.rint(total.astype(np.float32) * scale) + np.float32(zero)
    held: Array = np.clip(shifted, limits.min, limits.max)
    return held.astype(dtype)


@PATIENT
@given(
    size=st.tuples(st.integers(1, 19), st.integers(2, 40), st.integers(4, 70)),
    kinds=st.tuples(kinds, kinds, kinds),
    each=st.booleans(),
    known=st.booleans(),
)
def test_quantised_matmul(
    size: tuple[int, int, int], kinds: tuple[Any, Any, Any], each: bool, known: bool
) -> None:
    m, k, n = size
    a, b = integers(kinds[0], m, k), integers(kinds[1], k, n, seed=1)
    za, zb, zy = (integers(t, seed=s) for s, t in enumerate(kinds, 2))
    rng = np.random.default_rng(4)
    sa, sy = np.float32(0.013), np.float32(0.4)
    sb = rng.uniform(0.001, 0.1, (n,) if each else ()).astype(np.float32)
    zb = np.full(sb.shape, zb)
    model = Model()
    y = qlinear_matmul(
        model.given(a),
        *(model.given(np.asarray(v)) for v in (sa, za)),
        *(model.given(np.asarray(v), known) for v in (b, sb, zb)),
        *(model.given(np.asarray(v)) for v in (sy, zy)),
    )
    want = requantised(wide(a, za) @ wide(b, zb), sa * sb / sy, zy, kinds[2])
    model.check(y, want, want.size * k)


@PATIENT
@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 40),
    kinds=st.tuples(kinds, kinds),
    each=st.booleans(),
    biased=st.booleans(),
)
def test_quantised_convolution(
    inputs: int, outputs: int, kinds: tuple[Any, Any], each: bool, biased: bool
) -> None:
    x, w = integers(kinds[0], 1, inputs, 5, 6), integers(kinds[1], outputs, inputs, 3, 3, seed=1)
    rng = np.random.default_rng(5)
    sw = rng.uniform(0.001, 0.1, (outputs,) if each else ()).astype(np.float32)
    zx, zy = (integers(kinds[0], seed=s) for s in (2, 3))
    zw = integers(kinds[1], *sw.shape, seed=4)
    sx, sy = np.float32(0.01), np.float32(0.7)
    bias = rng.integers(-3000, 3000, outputs).astype(np.int32)
    model = Model()
    left = [model.given(np.asarray(v)) for v in (x, sx, zx)]
    right = [model.given(np.asarray(v), True) for v in (w, sw, zw)]
    result = [model.given(np.asarray(v)) for v in (sy, zy)]
    operands = [*left, *right, *result, *([model.given(bias, True)] if biased else [])]
    y = partial(qlinear_conv, pads=(1, 1, 1, 1))(*operands)
    total = convolved(wide(x, zx), wide(w, zw, 0), ((3, 1, 1, 1),) * 2, 1)
    if biased:
        total += bias[:, None, None]
    scale = np.broadcast_to(sx * sw / sy, outputs)[:, None, None]
    model.check(y, requantised(total, scale, zy, kinds[0]), total.size * w[0].size)


def test_what_is_multiplied_is_quantised_while_it_is_laid_out(model: Model) -> None:
    """A dynamic quantisation, a product, its scales and a rectifier: one kernel with a tile."""
    x = np.random.default_rng(6).standard_normal((21, 37)).astype(np.float32)
    w = integers(np.int8, 37, 48, seed=1)
    q, scale, zero = dynamic_quantize_linear(model.given(x))
    product = matmul_integer(q, model.given(w, True), zero)
    y = relu(compute(product.shape, lambda *i: cast(DType.F32, product[i]) * scale[()]))
    (got,), seen = model.interpreted(y)
    np.testing.assert_array_equal(model.compiled(y)[0], got)
    assert seen["tiles of bytes"] == 1
    reach = max(x.max(), 0) - min(x.min(), 0)
    bound = reach / 255 * np.abs(w.astype(int)).sum(0)
    assert (np.abs(got - np.maximum(x @ w, 0)) <= bound).all()
