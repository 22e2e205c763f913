"""Packed weights that give up their sources: what comes back is the very same, whoever asks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.dtypes import DType
from tilewright.fusion.restructure import Means, restructure
from tilewright.fusion.weights import PackedWeights
from tilewright.fusion.winograd import WinogradCompute
from tilewright.fusion.winograd_weights import Original, matrices, transformed
from tilewright.loops.ir import Expr
from tilewright.ops.common import select
from tilewright.ops.convolution import conv
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Compute, Constant, compute, constant, placeholder

Array = np.ndarray[Any, Any]
DTYPES = [np.float32, np.float64, np.int8, np.float16]


def numbered(*shape: int, dtype: Any = np.float32) -> Array:
    """Elements that all differ where the type allows, with a NaN and a negative zero among
    floats."""
    value = (np.arange(np.prod(shape), dtype=np.int64) % 2039 + 1).astype(dtype).reshape(shape)
    if value.dtype.kind == "f":
        value.flat[value.size // 2], value.flat[0] = np.nan, -0.0
    return value


def panels(
    source: Constant, order: Sequence[int], width: int, part: tuple[int, int] = (0, 0)
) -> Compute:
    """The source, its dimensions in `order` and the last of them its columns, in panels of
    `width` columns, zeros after the last; without so many columns in front and at the end."""
    *outer, last = [source.shape[k] for k in order]
    first, columns = part[0], last - sum(part)

    def element(*i: Expr) -> Expr:
        *steps, panel, deep, lane = i
        column = panel * width + lane
        place = dict(zip(order, (*steps, deep, column + first), strict=True))
        value = source[[place[k] for k in range(source.rank)]]
        return value if columns % width == 0 else select(column < columns, value, 0)

    return compute((*outer[:-1], -(-columns // width), outer[-1], width), element)


def column(c: Constant) -> Compute:
    return compute(c.shape[:1], lambda i: c[i, 0])


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4, unique=True),
    data=st.data(),
    widths=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    dtype=st.sampled_from(DTYPES),
    part=st.sampled_from([(0, 0), (0, 0), (0, 1), (1, 0)]),
)
def test_what_was_given_up_comes_back(
    shape: Sequence[int], data: Any, widths: tuple[int, int], dtype: Any, part: tuple[int, int]
) -> None:
    orders = st.permutations(range(len(shape)))
    order, other = data.draw(orders), data.draw(orders)
    part = part if shape[order[-1]] > 1 else (0, 0)
    value = numbered(*shape, dtype=dtype)
    want, seen = value.copy(), weakref.ref(value)
    source, weights = constant(value), PackedWeights()
    del value
    made = panels(source, order, widths[0], part)
    expected = evaluate(made)
    copy = weights.get(made)
    assert same_bits(copy, expected)
    gc.collect()
    event(f"given up: {seen() is None}")
    assert (seen() is None) == (part == (0, 0))  # what is left out cannot be had again
    assert same_bits(source.value, want)
    again = panels(source, other, widths[1])
    assert same_bits(weights.get(again), evaluate(again))
    weights.give_up_sources()
    assert same_bits(source.value, want)
    assert weights.get(panels(source, order, widths[0], part)) is copy


def test_sources_come_back_once_for_all_who_hold_them() -> None:
    source, weights = constant(numbered(6, 10)), PackedWeights()
    weights.get(panels(source, (0, 1), 4))
    first = source.value
    assert source.value is first
    weights.give_up_sources()
    assert source.value is first  # someone holds it, so there is no second one
    seen = weakref.ref(first.base if first.base is not None else first)
    del first
    weights.give_up_sources()
    gc.collect()
    assert seen() is None


def test_addresses_that_are_used_again_are_not_mistaken() -> None:
    """Constants that die between plans: none of them gets what another one was packed to."""
    weights = PackedWeights()
    for k in range(200):
        value = np.full((3, 5), k, np.float32)
        copy = weights.get(panels(constant(value), (0, 1), 4))
        assert (copy[:, :, 0] == k).all()
        first = column(constant(value))
        assert weights.derived(first, "sum", partial(np.sum, value)) == 15 * k
    assert weights.nbytes == 200 * (2 * 3 * 4 * 4 + 4)


@given(
    m=st.sampled_from([2, 4]),
    outputs=st.integers(1, 19),
    inputs=st.integers(1, 9),
    width=st.sampled_from([4, 8, 16]),
    kind=st.sampled_from(["normal", "small", "wide", "pruned", "special"]),
    seed=st.integers(0, 1 << 16),
)
def test_the_way_back_from_transformed_taps_is_exact(
    m: int, outputs: int, inputs: int, width: int, kind: str, seed: int
) -> None:
    rng, tables = np.random.default_rng(seed), matrices(m)
    taps = rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
    some = rng.random(taps.shape)
    match kind:
        case "small":
            taps *= np.float32(1e-42)  # less than normal numbers
        case "wide":
            taps *= (10.0 ** rng.integers(-9, 9, taps.shape)).astype(np.float32)
        case "pruned":
            taps[some < 0.05] = -0.0
        case "special":
            taps[some < 0.001] = rng.choice(np.array([np.nan, np.inf, 3e38], np.float32))
    back = Original.of(taps, transformed(taps, tables, width), tables)
    event(f"{kind}: {back is not None}")
    assert back is not None or kind != "normal" or taps.size < 1000
    if back is not None:
        assert same_bits(back(), taps) and same_bits(back(), taps)
        assert back.missing.nbytes + back.places.nbytes + back.values.nbytes < taps.nbytes


@pytest.mark.parametrize("m", [2, 4])
def test_the_way_back_is_exact_where_a_byte_just_does_or_does_not_do(m: int) -> None:
    taps, tables = random(32, 16, 3, 3), matrices(m)
    spread = transformed(taps, tables, 16)
    shift = np.arange(taps.size, dtype=np.int32).reshape(taps.shape) % 257 - 128
    moved = (taps.view(np.int32) + shift).view(np.float32)
    back = Original.of(moved, spread, tables)
    assert back is not None and len(back.places)
    assert {int(back.missing.min()), int(back.missing.max())} == {-127, 127}
    assert same_bits(back(), moved)


def test_transformed_taps_are_given_up_and_come_back() -> None:
    value = random(40, 32, 3, 3)
    want, seen = value.copy(), weakref.ref(value)
    x, w = placeholder((1, 32, 40, 40), DType.F32), constant(value)
    del value
    for _ in range(2):
        weights = PackedWeights()
        y = conv(x, w, pads=[1] * 4)
        (made,) = restructure([y], Means({32: 16, 64: 8}, weights))
        assert isinstance(made, WinogradCompute)
        gc.collect()
        assert seen() is None
        assert same_bits(w.value, want)
        weights.give_up_sources()


# --- whole models


def model_of(
    nodes: Sequence[Any], weights: dict[str, Array], rank: int, outputs: int
) -> ModelProto:
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [None] * rank)],
        [helper.make_tensor_value_info(f"y{k}", kind, None) for k in range(outputs)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SHARED = [
    helper.make_node("MatMul", ["x", "w"], ["y0"]),
    helper.make_node("Gemm", ["y0", "w"], ["y1"], transB=1),
    helper.make_node("MatMul", ["y1", "w"], ["h"]),
    helper.make_node("Add", ["h", "row"], ["y2"]),
    helper.make_node("Mul", ["w", "row"], ["v"]),
    helper.make_node("MatMul", ["x", "v"], ["y3"]),
]


@settings(max_examples=10)
@given(
    depth=st.integers(1, 40),
    columns=st.integers(1, 70),
    rows=st.lists(st.integers(1, 40), min_size=2, max_size=4, unique=True),
)
def test_models_that_read_one_initialiser_in_several_ways(
    depth: int, columns: int, rows: Sequence[int]
) -> None:
    w, row = random(depth, columns), random(columns, seed=1)
    proto = model_of(SHARED, {"w": w, "row": row}, 2, 4)
    models = [tw.compile(proto, threads=1), tw.compile(proto, threads=1)]
    for m in (*rows, rows[0]):
        x = random(m, depth, seed=m)
        y = x @ w
        want = [y, y @ w.T, y @ w.T @ w + row, x @ (w * row)]
        for model in models:
            got = list(model.run({"x": x}).values())
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * (np.abs(b).max() + 1))
        alone = tw.compile(proto, threads=1).run({"x": x}).values()
        assert all(same_bits(a, b) for a, b in zip(got, alone, strict=True))


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_of_many_shapes(group: int) -> None:
    """Strategies change with the shape, and each finds the weights as they were."""
    weights = {"w": random(32, 32 // group, 3, 3), "v": random(32, 32, 1, 1, seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1] * 4, group=group),
        helper.make_node("Conv", ["h", "v"], ["y0"]),
    ]
    proto = model_of(nodes, weights, 4, 1)
    model = tw.compile(proto, threads=2)
    for extent in (3, 40, 8, 3, 17):
        x = random(1, 32, extent, extent, seed=extent)
        (want,) = tw.compile(proto, threads=2).run({"x": x}).values()
        (got,) = model.run({"x": x}).values()
        assert same_bits(got, want)
        (exact,) = tw.compile(proto, options=tw.Options(interpret=True)).run({"x": x}).values()
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-4 * np.abs(exact).max())
