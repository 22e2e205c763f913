"""Sums of products of bytes, extremes and settled constants: kernels by the interpreter, and
compiled, against whole arrays of wide integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright.fusion.settle as settling
from tilewright.dtypes import DType, from_numpy
from tilewright.fusion.bytes import MAX_DEPTH
from tilewright.fusion.extremes import split_extremes
from tilewright.fusion.gates import quotients_before_quantisation
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline, topological
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import lower
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.restructure import Means, restructure
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Apply, Tile, apply, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops.activations import relu, sigmoid
from tilewright.ops.common import cast, reduce, select
from tilewright.ops.integer_contraction import (
    conv_integer,
    matmul_integer,
    qlinear_conv,
    qlinear_matmul,
)
from tilewright.ops.quantization import dynamic_quantize_linear, quantize_linear
from tilewright.ops.tensor import (
    Compute,
    Constant,
    Placeholder,
    Tensor,
    compute,
    constant,
    placeholder,
)
from tilewright.options import Options
from tilewright.runtime.cache import default_cache
from tilewright.runtime.plan import build_plan
from tilewright.schedule.heuristics import TileLimits, choose_schedule

pytestmark = pytest.mark.avx2

SMALL = TileLimits(rows={1: 4, 2: 3}, lanes={32: 4, 64: 2})
PATIENT = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
INTERPRETED = 1 << 16  # products that the interpreter gets through in time
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


@dataclass
class Model:
    """Tensors that are known only when the model runs, and those that are constants."""

    inputs: list[Placeholder]
    arrays: dict[str, Array]

    def given(self, value: Array, known: bool = False) -> Tensor:
        if known:
            return constant(value)
        x = placeholder(value.shape, from_numpy(value.dtype))
        self.inputs.append(x)
        self.arrays[x.name] = value
        return x

    def interpreted(self, *outputs: Tensor) -> tuple[list[Array], Counter[str]]:
        """The results by the loops of every kernel, and what the kernels were made of."""
        weights = PackedWeights()
        made = legalize(quotients_before_quantisation(outputs))
        whole = inline(self.inputs, restructure(made, Means(SMALL.lanes, weights, bytes=True)))
        whole = split_extremes(copy_results(whole), SMALL.lanes)
        whole = pack_operands(whole, SMALL.lanes, weights)
        arrays, seen = dict(self.arrays), Counter[str]()
        settled = settle(whole, weights)
        arrays |= {name: c.value for name, c in settled.items()}
        for group in form_groups(whole):
            n = lower(group, whole)
            kernel = verify(choose_schedule(n, SMALL))
            tiles = [s for s in walk(kernel.body) if isinstance(s, Tile)]
            seen["tiles of bytes"] += any(t.acc.dtype is DType.I32 for t in tiles)
            env = {}
            for b, t in zip(kernel.params, n.tensors, strict=True):
                if t.name not in arrays:
                    arrays[t.name] = (
                        t.value if isinstance(t, Constant) else poisoned(t.shape, t.dtype)
                    )
                env[b.name] = arrays[t.name]
            interpret(kernel, env)
        return [arrays[t.name] for t in whole.outputs], seen

    def compiled(self, *outputs: Tensor, threads: int = 2) -> list[Array]:
        plan = build_plan(self.inputs, outputs, Options(threads=threads), default_cache())
        return plan.run([self.arrays[x.name] for x in self.inputs])

    def check(self, y: Tensor, want: Array, work: int = 0) -> Counter[str]:
        np.testing.assert_array_equal(self.compiled(y)[0], want)
        if max(work, sum(a.size for a in self.arrays.values()) << 4) > INTERPRETED:
            return Counter()
        (got,), seen = self.interpreted(y)
        np.testing.assert_array_equal(got, want)
        return seen


@pytest.fixture
def model() -> Iterator[Model]:
    yield Model([], {})


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
    model = Model([], {})
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
    model = Model([], {})
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
    model = Model([], {})
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
    model = Model([], {})
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


LARGE = [(2, 3, 70, 90), (1, 24, 40, 30), (300, 150), (5000,)]
shapes = st.lists(st.integers(1, 21), min_size=1, max_size=4)


@PATIENT
@given(
    shape=st.one_of(
        shapes, st.sampled_from([(2, 3, 70, 90), (1, 24, 40, 30), (300, 150), (5000,)])
    ),
    op=st.sampled_from([ScalarOp.MIN, ScalarOp.MAX]),
    inner=st.booleans(),
    special=st.sampled_from([0.0, np.inf, -np.inf, np.nan]),
    at=st.integers(0, 1 << 30),
    joined=st.booleans(),
)
def test_extremes(
    shape: Sequence[int], op: ScalarOp, inner: bool, special: float, at: int, joined: bool
) -> None:
    value = np.random.default_rng(len(shape)).standard_normal(tuple(shape)).astype(np.float32)
    value.flat[at % value.size] = special or (100 if op is ScalarOp.MAX else -100)
    model = Model([], {})
    x = model.given(value.copy())
    source: Tensor = compute(value.shape, lambda *i: x[i] * 0.5, channels_last=inner)
    if joined:
        other, limit = model.given(value - 0.25), max(shape[0] // 2, 1)
        halves = source
        source = compute(value.shape, lambda *i: select(i[0] < limit, halves[i], other[i]))
        value[:limit], value[limit:] = value[:limit] * 0.5, value[limit:] - 0.25
    else:
        value *= 0.5
    y = reduce(op, source, list(range(len(shape))), False)
    want = value.min() if op is ScalarOp.MIN else value.max()
    model.check(y, want)


@PATIENT
@given(shape=shapes, inner=st.booleans(), wanted=st.integers(1, 3))
def test_results_that_are_read_again(shape: Sequence[int], inner: bool, wanted: int) -> None:
    """Whatever order suits their readers, the caller gets C order."""
    value = np.random.default_rng(len(shape)).standard_normal(tuple(shape)).astype(np.float32)
    model = Model([], {})
    x = model.given(value)
    first = compute(value.shape, lambda *i: x[i] + 1.0, channels_last=inner)
    second = compute(value.shape, lambda *i: first[i] * first[i], channels_last=inner)
    total = reduce(ScalarOp.MAX, second, list(range(len(shape))), False)
    outputs = (first, second, total)[:wanted]
    want = [value + 1, (value + 1) ** 2, ((value + 1) ** 2).max()][:wanted]
    for results in (model.interpreted(*outputs)[0], model.compiled(*outputs)):
        for got, expected in zip(results, want, strict=True):
            np.testing.assert_array_equal(got, expected)


def operators(t: Tensor) -> set[ScalarOp]:
    return {n.op for n in walk(t.body) if isinstance(n, Apply)} if isinstance(t, Compute) else set()


def test_only_what_is_quantised_is_a_quotient() -> None:
    x = placeholder((4, 5), DType.F32)
    gate, plain = sigmoid(x), sigmoid(x)
    product = compute((4, 5), lambda *i: x[i] * gate[i])
    scale, zero = constant(np.float32(0.1)), constant(np.uint8(3))
    y, other = quotients_before_quantisation([quantize_linear(product, scale, zero), plain])
    assert ScalarOp.SIGMOID in operators(other)
    seen = set().union(*map(operators, topological([y])))
    assert ScalarOp.RATIONAL_SIGMOID in seen and ScalarOp.SIGMOID not in seen


def settled(model: Model, *outputs: Tensor) -> tuple[list[Tensor], dict[str, Constant]]:
    whole = pack_operands(inline(model.inputs, legalize(outputs)), SMALL.lanes, PackedWeights())
    found = settle(whole, PackedWeights())
    return whole.order, found


@PATIENT
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    repeated=st.integers(1, 30),
    inner=st.booleans(),
    without=st.booleans(),
)
def test_settled_constants_change_nothing(
    shape: Sequence[int], repeated: int, inner: bool, without: bool
) -> None:
    rng = np.random.default_rng(7)
    value = rng.standard_normal((repeated, *shape)).astype(np.float32)
    table = rng.standard_normal(tuple(shape)).astype(np.float32)
    c, model = constant(table), Model([], {})
    scaled = compute(c.shape, lambda *i: apply(ScalarOp.EXP, c[i]), channels_last=inner)
    spread = compute(value.shape, lambda r, *i: scaled[i] + 1.0, channels_last=inner)
    x = model.given(value)
    y = compute(value.shape, lambda *i: x[i] * spread[i] + spread[i])
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setattr(settling, "_is_fixed", lambda t, fixed: False)
        results = [*model.interpreted(y)[0], *model.compiled(y)]
    addend = np.exp(table) + np.float32(1)
    for got in results:
        np.testing.assert_allclose(got, value * addend + addend, rtol=1e-5, atol=1e-5)


def test_what_depends_on_constants_alone_is_not_computed_in_a_run() -> None:
    c, model = constant(np.linspace(-3, 3, 600, dtype=np.float32)), Model([], {})
    table = compute((600,), lambda i: apply(ScalarOp.EXP, c[i]))
    x = model.given(np.ones((5, 600), np.float32))
    y = compute((5, 600), lambda r, i: x[r, i] + table[i])
    order, found = settled(model, y)
    assert len(found) == 1 and not any(t.name in found for t in order)
    (kept,) = found.values()
    np.testing.assert_allclose(kept.value, np.exp(c.value), rtol=1e-5)


@pytest.mark.parametrize(("rows", "kept"), [(2, True), (2000, False)])
def test_settled_constants_stay_small(rows: int, kept: bool) -> None:
    """Constants that broadcasting would multiply are computed anew in each run."""
    c, model = constant(np.ones((1, 64), np.float32)), Model([], {})
    steps = constant(np.arange(rows, dtype=np.float32))
    table = compute((rows, 64), lambda r, i: apply(ScalarOp.EXP, c[0, i] * steps[r]))
    x = model.given(np.ones((3, rows, 64), np.float32))
    y = compute(x.shape, lambda n, r, i: x[n, r, i] + table[r, i])
    _, found = settled(model, y)
    assert bool(found) == kept
    given = sum(t.value.nbytes for t in (c, steps))
    sizes = [t.value.nbytes for t in found.values()]
    assert all(n <= max(settling.SMALL, settling.MAX_GROWTH * given) for n in sizes)
