"""Operators that move elements, and those that read and write at places from data: against NumPy
and ONNX's reference. Every result is also lowered, so that the verifier sees its indices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_evaluation import (
    FEW,
    Array,
    arrays,
    i64,
    numbered,
    reference,
    results,
    run,
    same,
)
from strategies import random_array, shapes
from tilewright.errors import ExecutionError, OperatorError

# -- shapes


@FEW
@given(st.data(), arrays())
def test_reshape_merges_and_splits(data: st.DataObject, x: Array) -> None:
    order = data.draw(st.permutations(x.shape))
    same(run("Reshape", x, i64(*order)), x.reshape(order))
    cut = data.draw(st.integers(0, x.ndim))
    same(run("Flatten", x, axis=cut), x.reshape(int(np.prod(x.shape[:cut])), -1))
    same(run("Reshape", x, i64(0, -1)), x.reshape(x.shape[0], -1))


def test_reshape_refuses_what_does_not_fit() -> None:
    for shape in (i64(4, 2), i64(-1, -1), i64(-1, 4), i64(-2, 3), i64(2, 3, 0)):
        with pytest.raises(OperatorError):
            run("Reshape", numbered(2, 3), shape)


@FEW
@given(st.data(), arrays())
def test_new_axes_come_and_go(data: st.DataObject, x: Array) -> None:
    axes = data.draw(st.sets(st.integers(-x.ndim - 1, x.ndim), min_size=1, max_size=1))
    wide = run("Unsqueeze", x, i64(*axes))
    same(wide, np.expand_dims(x, tuple(axes)))
    same(run("Squeeze", wide, i64(*axes)), x)
    same(run("Squeeze", wide), x.squeeze())


@FEW
@given(st.data(), arrays())
def test_transpose(data: st.DataObject, x: Array) -> None:
    perm = tuple(data.draw(st.permutations(range(x.ndim))))
    same(run("Transpose", x, perm=perm), x.transpose(perm))
    same(run("Transpose", x), x.T)


@FEW
@given(st.data(), arrays())
def test_expand_and_tile(data: st.DataObject, x: Array) -> None:
    narrow = x[tuple(slice(0, 1) if data.draw(st.booleans()) else slice(None) for _ in x.shape)]
    same(run("Expand", narrow, i64(2, *x.shape)), np.broadcast_to(narrow, (2, *x.shape)))
    times = data.draw(st.lists(st.integers(0, 3), min_size=x.ndim, max_size=x.ndim))
    same(run("Tile", x, i64(*times)), np.tile(x, times))


@FEW
@given(st.data(), arrays(), st.integers(1, 20))
def test_concat_undoes_split(data: st.DataObject, x: Array, pieces: int) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    cuts = sorted(data.draw(st.lists(st.integers(0, n), min_size=pieces, max_size=pieces)))
    lengths = np.diff([0, *cuts, n])
    parts = results("Split", x, i64(*lengths), axis=axis, outputs=len(lengths))
    for part, wanted in zip(parts, np.split(x, cuts, axis), strict=True):
        same(part, wanted)
    same(run("Concat", *parts, axis=axis), x)


def test_split_into_equal_parts_has_a_smaller_last_one() -> None:
    parts = results("Split", numbered(2, 7), axis=1, num_outputs=3, outputs=3)
    assert [p.shape for p in parts] == [(2, 3), (2, 3), (2, 1)]


@FEW
@given(st.data(), arrays())
def test_slice_is_pythons(data: st.DataObject, x: Array) -> None:
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True))
    place = st.integers(-12, 12)
    step = st.sampled_from([-3, -2, -1, 1, 2, 5])
    cuts = []
    for axis in axes:
        n, s = x.shape[axis], data.draw(step)
        first = place if s > 0 else st.integers(-n, 12)
        cuts.append((data.draw(first), data.draw(place), s))
    index = [slice(None)] * x.ndim
    for axis, (a, b, s) in zip(axes, cuts, strict=True):
        n = x.shape[axis]
        index[axis] = slice(max(a, -n), None if s < 0 and b < -n else b, s)
    starts, ends, steps = zip(*cuts, strict=True)
    made = run("Slice", x, i64(*starts), i64(*ends), i64(*axes), i64(*steps))
    same(made, x[tuple(index)])


@FEW
@given(st.data(), shapes(), st.sampled_from(["constant", "edge", "reflect", "wrap"]))
def test_pad(data: st.DataObject, shape: tuple[int, ...], mode: str) -> None:
    x = numbered(*shape)
    most = [n - 1 if mode == "reflect" else 2 * n for n in shape]
    pads = [(data.draw(st.integers(0, m)), data.draw(st.integers(0, m))) for m in most]
    if int(np.prod([n + a + b for n, (a, b) in zip(shape, pads, strict=True)])) > 40_000:
        pads = [(0, 0)] * (len(shape) - 1) + pads[-1:]
    fill = np.float32(7.5)
    extra = {"constant_values": fill} if mode == "constant" else {}
    flat = i64(*(a for a, _ in pads), *(b for _, b in pads))
    same(run("Pad", x, flat, np.array(fill), mode=mode), np.pad(x, pads, mode, **extra))  # type: ignore[call-overload]


def test_negative_pads_cut_and_axes_choose() -> None:
    x = numbered(3, 4, 5)
    made = run("Pad", x, i64(-1, 2, 0, -2), None, i64(-1, 0))
    same(made, np.pad(x[:-2, :, 1:], [(2, 0), (0, 0), (0, 0)]))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str) -> None:
    x = numbered(2, 12, 3, 5)
    deep = run("DepthToSpace", x, blocksize=2, mode=mode)
    same(deep, reference("DepthToSpace", x, blocksize=2, mode=mode))
    if mode == "DCR":
        same(run("SpaceToDepth", deep, blocksize=2), x)


@FEW
@given(arrays(min_rank=2), st.integers(-6, 6), st.sampled_from([0, 1]))
def test_trilu(x: Array, k: int, upper: int) -> None:
    same(run("Trilu", x, np.array(k, np.int64), upper=upper), (np.triu if upper else np.tril)(x, k))


# -- places from data


def places(data: st.DataObject, shape: tuple[int, ...], extent: int) -> Array:
    """Indices into an extent, negative ones among them."""
    seed = data.draw(st.integers(0, 99))
    return np.random.default_rng(seed).integers(-extent, extent, shape)


@FEW
@given(st.data(), arrays(), shapes(0, 2))
def test_gather(data: st.DataObject, x: Array, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    indices = places(data, shape, x.shape[axis])
    same(run("Gather", x, indices, axis=axis), np.take(x, indices, axis))


@FEW
@given(st.data(), arrays())
def test_gather_elements(data: st.DataObject, x: Array) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    shape = tuple(data.draw(st.integers(1, n)) for n in x.shape)
    indices = places(data, shape, x.shape[axis])
    near = tuple(slice(0, m if k != axis % x.ndim else None) for k, m in enumerate(shape))
    made = run("GatherElements", x, indices, axis=axis)
    same(made, np.take_along_axis(x[near], indices, axis))


@FEW
@given(st.data(), arrays())
def test_gather_and_scatter_slices(data: st.DataObject, x: Array) -> None:
    depth = data.draw(st.integers(1, x.ndim))
    columns = [places(data, (3, 2), n) for n in x.shape[:depth]]
    indices = np.stack(columns, axis=-1)
    slices = run("GatherND", x, indices)
    same(slices, x[tuple(columns)])
    same(run("ScatterND", x, indices, slices), x)
    same(run("ScatterND", x, indices, np.zeros_like(slices)), scattered(x, columns))


def scattered(x: Array, columns: list[Array]) -> Array:
    made = x.copy()
    made[tuple(columns)] = 0
    return made


def test_gather_nd_of_batches() -> None:
    x, indices = numbered(2, 3, 4, 5), np.array([[[2], [0]], [[-1], [1]]])
    wanted = np.stack([x[b][indices[b, :, 0]] for b in range(2)])
    same(run("GatherND", x, indices, batch_dims=1), wanted)


@FEW
@given(st.data(), shapes(), st.sampled_from(["none", "add", "mul", "min", "max"]))
def test_scatter_elements(data: st.DataObject, shape: tuple[int, ...], reduction: str) -> None:
    x = numbered(*shape)
    axis = data.draw(st.integers(0, x.ndim - 1))
    part = tuple(data.draw(st.integers(1, n)) for n in shape)
    indices, updates = places(data, part, shape[axis]), numbered(*part) - 3
    made = run("ScatterElements", x, indices, updates, axis=axis, reduction=reduction)
    wanted = reference("ScatterElements", x, indices, updates, axis=axis, reduction=reduction)
    np.testing.assert_allclose(made, wanted, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["add", "mul", "min", "max"])
@pytest.mark.parametrize("rows", [2, 40])
def test_slices_that_meet_are_combined(reduction: str, rows: int) -> None:
    x = numbered(5, 4, 3)
    indices = np.random.default_rng(0).integers(-5, 5, (rows, 1))
    updates = random_array(1, (rows, 4, 3))
    made = run("ScatterND", x, indices, updates, reduction=reduction)
    wanted = x.copy()
    function: Any = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
    function[reduction].at(wanted, indices[:, 0], updates)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)


def test_bad_places_are_reported() -> None:
    x = numbered(3, 4)
    for name, *operands in (
        ("Gather", np.array([3])),
        ("GatherElements", np.array([[-4]])),
        ("GatherND", np.array([[0, 4]])),
        ("ScatterElements", np.array([[3]]), numbered(1, 1)),
        ("ScatterND", np.array([[-4]]), numbered(1, 4)),
    ):
        with pytest.raises((ExecutionError, IndexError)):
            run(name, x, *operands)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter(mode: str) -> None:
    past, update = numbered(3, 2, 7, 4), -1 - numbered(3, 2, 2, 4)
    starts = i64(0, 3, 6 if mode == "circular" else 5)
    wanted = past.copy()
    for b, step in itertools.product(range(3), range(2)):
        wanted[b, :, (starts[b] + step) % 7] = update[b, :, step]
    same(run("TensorScatter", past, update, starts, mode=mode), wanted)
    same(run("TensorScatter", past, update), np.concatenate([update, past[:, :, 2:]], axis=2))


@FEW
@given(st.data(), shapes(0, 3), st.integers(1, 5))
def test_one_hot(data: st.DataObject, shape: tuple[int, ...], depth: int) -> None:
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    indices, values = places(data, shape, 2 * depth), np.array([2, 5], np.float32)
    hot = np.where(
        np.arange(depth) == np.where(indices < 0, indices + depth, indices)[..., None], 5, 2
    )
    wanted = np.moveaxis(hot.astype(np.float32), -1, axis)
    same(run("OneHot", indices, np.array(depth), values, axis=axis), wanted)


@pytest.mark.parametrize("time", [0, 1])
def test_reverse_sequence(time: int) -> None:
    x, lengths = numbered(4, 4, 3), i64(1, 4, 2, 3)
    made = run("ReverseSequence", x, lengths, time_axis=time, batch_axis=1 - time)
    wanted = x.copy()
    for b, n in enumerate(lengths):
        row = (slice(0, n), b) if time == 0 else (b, slice(0, n))
        wanted[row] = x[row][::-1]
    same(made, wanted)
