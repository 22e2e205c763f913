"""Extremes of whole tensors, results that are read again, and constants that plans settle: kernels
by the interpreter, and compiled, against whole arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright.fusion.settle as settling
from interpreted import SMALL, Model
from tilewright.dtypes import DType
from tilewright.fusion.gates import quotients_before_quantisation
from tilewright.fusion.inline import inline, topological
from tilewright.fusion.legalize import legalize
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.ir import Apply, apply, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.activations import sigmoid
from tilewright.ops.common import reduce, select
from tilewright.ops.quantization import quantize_linear
from tilewright.ops.tensor import (
    Compute,
    Constant,
    Tensor,
    compute,
    constant,
    placeholder,
)

pytestmark = pytest.mark.avx2

PATIENT = settings(max_examples=12, deadline=None)
Array = np.ndarray
LARGE = [(2, 3, 70, 90), (1, 24, 40, 30), (300, 150), (5000,), (301, 150), (3, 151, 99)]
shapes = st.lists(st.integers(1, 21), min_size=1, max_size=4)


@PATIENT
@given(
    shape=st.one_of(shapes, st.sampled_from(LARGE)),
    op=st.sampled_from([ScalarOp.MIN, ScalarOp.MAX]),
    inner=st.booleans(),
    special=st.sampled_from([0.0, np.inf, -np.inf, np.nan]),
    at=st.one_of(st.just(-1), st.integers(0, 1 << 30)),
    joined=st.booleans(),
)
def test_extremes(
    shape: Sequence[int], op: ScalarOp, inner: bool, special: float, at: int, joined: bool
) -> None:
    value = np.random.default_rng(len(shape)).standard_normal(tuple(shape)).astype(np.float32)
    value.flat[at % value.size] = special or (100 if op is ScalarOp.MAX else -100)
    model = Model()
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


@pytest.mark.parametrize("shape", [(301, 150), (3, 151, 99), (1, 70, 701)])
@pytest.mark.parametrize("inner", [False, True])
def test_parts_that_do_not_come_out_even_miss_nothing(shape: tuple[int, ...], inner: bool) -> None:
    corners = [tuple(e * (n - 1) for e, n in zip(ends, shape)) for ends in np.ndindex(2, 2, 2)]
    for corner in {c[: len(shape)] for c in corners}:
        value = np.zeros(shape, np.float32)
        value[corner] = 1
        model = Model()
        x = model.given(value)
        source = compute(shape, lambda *i, x=x: x[i] * 0.5, channels_last=inner)  # type: ignore[misc]
        y = reduce(ScalarOp.MAX, source, list(range(len(shape))), False)
        np.testing.assert_array_equal(model.compiled(y)[0], 0.5)


@PATIENT
@given(shape=shapes, inner=st.booleans(), wanted=st.integers(1, 3))
def test_results_that_are_read_again(shape: Sequence[int], inner: bool, wanted: int) -> None:
    """Whatever order suits their readers, the caller gets C order."""
    value = np.random.default_rng(len(shape)).standard_normal(tuple(shape)).astype(np.float32)
    model = Model()
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
    c, model = constant(table), Model()
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
    c, model = constant(np.linspace(-3, 3, 600, dtype=np.float32)), Model()
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
    c, model = constant(np.ones((1, 64), np.float32)), Model()
    steps = constant(np.arange(rows, dtype=np.float32))
    table = compute((rows, 64), lambda r, i: apply(ScalarOp.EXP, c[0, i] * steps[r]))
    x = model.given(np.ones((3, rows, 64), np.float32))
    y = compute(x.shape, lambda n, r, i: x[n, r, i] + table[r, i])
    _, found = settled(model, y)
    assert bool(found) == kept
    given = sum(t.value.nbytes for t in (c, steps))
    sizes = [t.value.nbytes for t in found.values()]
    assert all(n <= max(settling.SMALL, settling.MAX_GROWTH * given) for n in sizes)
