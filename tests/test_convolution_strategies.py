"""Every way of computing a convolution means the same: kernels by the interpreter, and compiled,
against whole arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from interpreted import SMALL, interpreted
from tilewright.dtypes import DType
from tilewright.fusion import winograd
from tilewright.fusion.convolution import find_convolution
from tilewright.fusion.legalize import legalize
from tilewright.fusion.restructure import STRATEGIES, Means, restructure
from tilewright.fusion.weights import PackedWeights
from tilewright.fusion.winograd import WinogradCompute
from tilewright.fusion.winograd_weights import POINTS, matrices
from tilewright.ops.convolution import conv, conv_transpose
from tilewright.ops.evaluate import evaluate
from tilewright.ops.pooling import average_pool, max_pool
from tilewright.ops.tensor import (
    Compute,
    Placeholder,
    Tensor,
    compute,
    constant,
    placeholder,
)
from tilewright.options import Options
from tilewright.runtime.cache import default_cache
from tilewright.runtime.plan import build_plan

PATIENT = settings(
    max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
windows = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on_interpreter(x: Placeholder, y: Tensor, value: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
    """The result by the loops of every kernel, and what the kernels were made of."""
    (got,), seen = interpreted([x], [y], {x.name: value})
    return got, seen


def compiled(x: Placeholder, y: Tensor, value: np.ndarray) -> np.ndarray:
    plan = build_plan([x], [y], Options(threads=2), default_cache())
    return plan.run([value])[0]


def check(x: Placeholder, y: Tensor, value: np.ndarray) -> Counter[str]:
    want = evaluate(y, {x.name: value})
    tolerance = 1e-4 * max(1.0, float(np.abs(want).max(initial=0)))
    got, seen = on_interpreter(x, y, value)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    np.testing.assert_allclose(compiled(x, y, value), want, rtol=0, atol=tolerance)
    for name in seen:
        event(f"{name}: {bool(seen[name])}")
    return seen


def image(shape: tuple[int, ...], inner: bool) -> tuple[Placeholder, Tensor, np.ndarray]:
    """A placeholder and a map of it, with channels innermost in memory or not."""
    x = placeholder(shape, DType.F32)
    y = compute(shape, lambda *i: x[i] * 0.5, channels_last=inner)
    return x, y, random(*shape)


def completed(y: Tensor, residual: bool) -> Tensor:
    """y with an epilogue: one that reads the result twice, or another tensor too."""
    if residual:
        other = constant(random(*y.shape, seed=9))
        return compute(y.shape, lambda *i: y[i] + other[i])
    return compute(y.shape, lambda *i: y[i] * y[i] + 1.0)


@PATIENT
@given(
    batch=st.integers(1, 2),
    group=st.integers(1, 3),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    extents=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    down=windows,
    along=windows,
    inner=st.booleans(),
    residual=st.booleans(),
)
def test_convolutions(
    batch: int,
    group: int,
    inputs: int,
    outputs: int,
    extents: tuple[int, int],
    down: tuple[int, int, int, int],
    along: tuple[int, int, int, int],
    inner: bool,
    residual: bool,
) -> None:
    kernel, strides, dilations, pads = zip(down, along, strict=True)
    fits = [
        n + 2 * p >= (k - 1) * d + 1
        for n, k, d, p in zip(extents, kernel, dilations, pads, strict=True)
    ]
    if not all(fits):
        return
    x, middle, value = image((batch, group * inputs, *extents), inner)
    w = constant(random(group * outputs, inputs, *kernel, seed=1))
    y = conv(middle, w, group=group, strides=strides, dilations=dilations, pads=(*pads, *pads))
    assert find_convolution(legalize([y])[0]) is not None or w.size == 0
    check(x, completed(y, residual), value)


@PATIENT
@given(
    group=st.integers(1, 2),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    extents=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    before=st.integers(0, 2),
    more=st.integers(0, 1),
    completes=st.booleans(),
)
def test_transposed_convolutions(
    group: int,
    inputs: int,
    outputs: int,
    extents: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    before: int,
    more: int,
    completes: bool,
) -> None:
    out = [
        (n - 1) * s + more + k - before for n, s, k in zip(extents, strides, kernel, strict=True)
    ]
    if min(out) < 1 or more >= min(strides):
        return
    x, middle, value = image((1, group * inputs, *extents), True)
    w = constant(random(group * inputs, outputs, *kernel, seed=1))
    pads = (before, before, 0, 0)
    y = conv_transpose(
        middle, w, group=group, strides=strides, pads=pads, output_padding=(more, more)
    )
    if completes:
        y = conv(completed(y, False), constant(random(3, y.shape[1], 1, 1, seed=3)))
    check(x, y, value)


@PATIENT
@given(
    batch=st.integers(1, 2),
    inputs=st.integers(2, 6),
    outputs=st.integers(4, 9),
    places=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    taps=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    fewer=st.integers(0, 1),
    upper=st.booleans(),
    residual=st.booleans(),
)
def test_phases_stand_where_they_belong(
    batch: int,
    inputs: int,
    outputs: int,
    places: tuple[int, int],
    strides: tuple[int, int],
    taps: tuple[int, int],
    fewer: int,
    upper: bool,
    residual: bool,
) -> None:
    """Transposed convolutions whose results are whole strides, with maps and a product after."""
    kernel = [max(1, s * t - fewer) for s, t in zip(strides, taps, strict=True)]
    x, middle, value = image((batch, inputs, *places), True)
    y = conv_transpose(
        middle,
        constant(random(inputs, outputs, *kernel, seed=1)),
        constant(random(outputs, seed=2)),
        strides=strides,
        auto_pad="SAME_UPPER" if upper else "SAME_LOWER",
    )
    z = completed(y, residual)
    last = conv(z, constant(random(5, outputs, 1, 1, seed=3)))
    check(x, last, value)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Winograd's algorithm for images that are too small for it to pay."""
    for name in ("FETCH", "COPY", "TRANSFORM"):
        monkeypatch.setattr(winograd, name, 0.0)
    yield


@PATIENT
@given(
    batch=st.integers(1, 2),
    inputs=st.integers(4, 9),
    outputs=st.integers(4, 13),
    extents=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    inner=st.booleans(),
    residual=st.booleans(),
)
def test_winograd(
    eager: None,
    batch: int,
    inputs: int,
    outputs: int,
    extents: tuple[int, int],
    pads: tuple[int, int, int, int],
    inner: bool,
    residual: bool,
) -> None:
    x, middle, value = image((batch, inputs, *extents), inner)
    w = constant(random(outputs, inputs, 3, 3, seed=1))
    y = conv(middle, w, pads=pads)
    seen = check(x, completed(y, residual), value)
    event(f"winograd: {seen['winograd']}")


@pytest.mark.parametrize("m", [2, 4])
def test_winograd_of_larger_images(m: int, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.fusion.restructure.POINTS", {m: POINTS[m]})
    x, middle, value = image((1, 40, 61, 35), True)
    y = conv(middle, constant(random(72, 40, 3, 3, seed=1)), pads=(1, 1, 1, 1))
    outputs = restructure(legalize([y]), Means({32: 16, 64: 8}, PackedWeights()))
    assert isinstance(outputs[0], WinogradCompute)
    assert outputs[0].form is not None and outputs[0].form.m == m
    want = evaluate(y, {x.name: value})
    got = compiled(x, y, value)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("m", [2, 4])
def test_winograds_matrices(m: int) -> None:
    table = matrices(m)
    data, taps = random(m + 2).astype(np.float64), random(3, seed=1).astype(np.float64)
    got = table.a @ ((table.g @ taps) * (table.b @ data))
    np.testing.assert_allclose(got, np.correlate(data, taps), rtol=1e-12)


def test_exact_sums_are_left_alone(eager: None) -> None:
    _, middle, _ = image((1, 8, 9, 9), True)
    y = conv(middle, constant(random(8, 8, 3, 3)), pads=(1, 1, 1, 1))
    assert isinstance(y, Compute)
    means = Means(SMALL.lanes, PackedWeights())
    assert isinstance(restructure([y], means)[0], WinogradCompute)
    assert not isinstance(restructure([replace(y, exact=True)], means)[0], WinogradCompute)


@PATIENT
@given(
    channels=st.integers(1, 11),
    extents=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    down=windows,
    along=windows,
    greatest=st.booleans(),
)
def test_pools(
    channels: int,
    extents: tuple[int, int],
    down: tuple[int, int, int, int],
    along: tuple[int, int, int, int],
    greatest: bool,
) -> None:
    kernel, strides, dilations, wanted = zip(down, along, strict=True)
    pads = [min(p, k - 1) for p, k in zip(wanted, kernel, strict=True)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(n + 2 * p < r for n, p, r in zip(extents, pads, reach, strict=True)):
        return
    x, middle, value = image((1, channels, *extents), True)
    pool = max_pool if greatest else average_pool
    found = pool(
        middle, kernel_shape=kernel, strides=strides, dilations=dilations, pads=(*pads, *pads)
    )
    y = found[0] if isinstance(found, tuple) else found
    assert y is not None
    check(x, y, value)


def test_every_strategy_is_met() -> None:
    """One convolution for each strategy that only this one takes."""
    means, cases = (
        Means(SMALL.lanes, PackedWeights()),
        {
            "spread_groups": ((1, 16, 9, 9), (8, 2, 3, 3), 8),
            "split_groups": ((1, 8, 9, 9), (8, 4, 3, 3), 2),
            "gather_few_outputs": ((1, 8, 9, 9), (1, 8, 3, 3), 1),
            "widen_lines": ((1, 3, 9, 9), (8, 3, 3, 3), 1),
        },
    )
    for name, (shape, weights, group) in cases.items():
        _, middle, _ = image(shape, True)
        c = find_convolution(conv(middle, constant(random(*weights)), group=group, pads=(1,) * 4))
        assert c is not None
        taken = [s.__name__ for s in STRATEGIES if s(c, means) is not None]
        assert taken[0] == name


@PATIENT
@given(
    batch=st.integers(1, 2),
    group=st.integers(2, 9),
    inputs=st.integers(1, 5),
    share=st.integers(1, 5),
    extents=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    down=windows,
    along=windows,
    several=st.booleans(),
)
def test_groups_and_the_maps_after_them(
    batch: int,
    group: int,
    inputs: int,
    share: int,
    extents: tuple[int, int],
    down: tuple[int, int, int, int],
    along: tuple[int, int, int, int],
    several: bool,
) -> None:
    """Groups of every size, what completes them, and what reads that in a form of its own."""
    kernel, strides, dilations, pads = zip(down, along, strict=True)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(n + 2 * p < r for n, p, r in zip(extents, pads, reach, strict=True)):
        return
    x, middle, value = image((batch, group * inputs, *extents), True)
    w = constant(random(group * share, inputs, *kernel, seed=1))
    bias = constant(random(group * share, seed=2))
    y = conv(middle, w, bias, group=group, strides=strides, dilations=dilations, pads=pads * 2)
    z = completed(y, several)
    if several:
        z = compute(z.shape, lambda *i: z[i] * y[i])
    last = conv(z, constant(random(5, group * share, 1, 1, seed=3)))
    check(x, last, value)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_completes_a_result_taken_apart_is_computed_with_it(transposed: bool) -> None:
    x, middle, value = image((1, 12, 6, 6), True)
    if transposed:
        weights = constant(random(12, 8, 4, 4))
        y = conv_transpose(middle, weights, strides=(2, 2), pads=(1,) * 4)
    else:
        y = conv(middle, constant(random(12, 6, 3, 3)), group=2, pads=(1,) * 4)
    z = completed(completed(y, True), False)
    last = conv(z, constant(random(5, y.shape[1], 1, 1)))
    _, seen = on_interpreter(x, last, value)
    assert seen["kernels"] == 3  # the image, the convolution with its maps, the last one


@pytest.mark.parametrize(
    ("kernel", "pads", "more"),
    [(3, (1, 1, 1, 1), 0), (3, (0, 0, 0, 0), 0), (3, (1, 0, 1, 0), 0), (4, (1, 1, 1, 1), 1)],
)
def test_phases_that_do_not_come_out_even(kernel: int, pads: tuple[int, ...], more: int) -> None:
    """Odd extents: the phases have no common shape, whether or not places begin at zero."""
    x, middle, value = image((1, 6, 5, 4), True)
    w = constant(random(6, 8, kernel, kernel))
    y = conv_transpose(middle, w, strides=(2, 2), pads=pads, output_padding=(more, more))
    last = conv(completed(y, True), constant(random(5, 8, 1, 1)))
    assert all(n % 2 for n in y.shape[2:])
    check_plainly(x, last, value)


@pytest.mark.parametrize("share", [1, 3])
def test_small_groups(share: int) -> None:
    inputs = 2 if share == 1 else 1
    x, middle, value = image((2, 8 * inputs, 6, 5), True)
    w = constant(random(8 * share, inputs, 3, 2))
    y = conv(middle, w, group=8, strides=(1, 2), pads=(1, 0, 2, 1))
    check_plainly(x, y, value)


def check_plainly(x: Placeholder, y: Tensor, value: np.ndarray) -> None:
    """By the loops alone."""
    want, (got, _) = evaluate(y, {x.name: value}), on_interpreter(x, y, value)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
