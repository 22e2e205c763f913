"""Operators that move elements, and those that read and write at places from data: against NumPy
and ONNX's reference. Every result is also lowered, so that the verifier sees its indices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import tilewright.driver  # noqa: F401  (registers the operators)
from operator_oracle import check
from strategies import random_array, shapes
from tilewright.dtypes import DType, from_numpy
from tilewright.errors import ExecutionError, OperatorError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import lower
from tilewright.loops.ir import Load, walk
from tilewright.loops.verify import verify
from tilewright.ops.evaluate import evaluate
from tilewright.ops.registry import find
from tilewright.ops.tensor import (
    Compute,
    Constant,
    NeedsValue,
    Placeholder,
    Tensor,
    constant,
    placeholder,
)

Array = np.ndarray
FEW = settings(max_examples=20, deadline=None)
DTYPES = (DType.F32, DType.F64, DType.F16, DType.I64, DType.U8, DType.BOOL)


def expression(name: str, *arrays: Array | None, **attributes: Any) -> Any:
    """What the operator makes of placeholders, or of constants where it needs the elements."""
    definition = find("", name)
    assert definition is not None, name
    operands: list[Tensor | None] = [
        None if a is None else placeholder(a.shape, from_numpy(a.dtype), f"x{k}")
        for k, a in enumerate(arrays)
    ]
    while True:
        try:
            return definition(*operands, **attributes)
        except NeedsValue as need:
            k = next(k for k, t in enumerate(operands) if t is need.tensor)
            operands[k] = constant(arrays[k])


def results(name: str, *arrays: Array | None, **attributes: Any) -> list[Array]:
    """The operator's results by whole-array evaluation, once their loops are known to be sound."""
    made = expression(name, *arrays, **attributes)
    tensors = [made] if isinstance(made, Tensor) else list(made)
    require_sound(tensors)
    env = {f"x{k}": a for k, a in enumerate(arrays) if a is not None}
    return [evaluate(t, env) for t in tensors]


def require_sound(tensors: list[Tensor]) -> None:
    """VerifyError unless every index is provably inside and parallel iterations are independent."""
    stored = [t for t in tensors if not isinstance(t, (Placeholder, Constant))]
    program = inline([], legalize(stored))
    for group in form_groups(program):
        verify(lower(group, program).kernel)


def run(name: str, *arrays: Array | None, **attributes: Any) -> Array:
    (only,) = results(name, *arrays, **attributes)
    return only


def reference(name: str, *arrays: Array | None, **attributes: Any) -> Array:
    """ONNX's own definition on the same operands."""
    feeds = {f"x{k}": a for k, a in enumerate(arrays) if a is not None}
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(arrays)]
    node = helper.make_node(name, names, ["y"], **attributes)
    infos = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in (*feeds, "y")]
    graph = helper.make_graph([node], "g", infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    made: Any = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(made[0])


def same(actual: Array, wanted: Array) -> None:
    assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
    np.testing.assert_array_equal(actual, wanted)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def numbered(*shape: int) -> Array:
    """Elements that all differ."""
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@st.composite
def arrays(draw: st.DrawFn, min_rank: int = 1) -> Array:
    """An array of rank up to 5, of any type that kernels compute on."""
    shape = draw(shapes(min_rank))
    return random_array(draw(st.integers(0, 9)), shape, draw(st.sampled_from(DTYPES)))


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


# -- Resize

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(COORDINATES), st.sampled_from(["nearest", "linear", "cubic"]))
def test_resize(data: st.DataObject, coordinates: str, mode: str) -> None:
    shape = data.draw(shapes(1, 3))
    x = random_array(1, shape)
    attributes: dict[str, Any] = {"coordinate_transformation_mode": coordinates, "mode": mode}
    if mode == "nearest":
        attributes["nearest_mode"] = data.draw(st.sampled_from(ROUNDING))
    else:
        attributes["antialias"] = data.draw(st.sampled_from([0, 1]))
        attributes["exclude_outside"] = data.draw(st.sampled_from([0, 1]))
    roi = None
    if coordinates == "tf_crop_and_resize":
        roi = np.array([0.25] * x.ndim + [1.25] * x.ndim, np.float32)
        attributes["extrapolation_value"] = 9.0
    scales: Array | None = None
    sizes: Array | None = None
    # The reference decides ties in float64, which is another result where a scale is inexact.
    if mode == "nearest" or data.draw(st.booleans()):
        factors = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])
        scales = np.array([max(data.draw(factors), 1 / n) for n in shape], np.float32)
    else:
        sizes = i64(*(data.draw(st.integers(1, 9)) for _ in shape))
        attributes["keep_aspect_ratio_policy"] = data.draw(
            st.sampled_from(["stretch", "not_larger", "not_smaller"])
        )
    if roi is None or min(scales if scales is not None else sizes) > 0:  # type: ignore[arg-type]
        made = run("Resize", x, roi, scales, sizes, **attributes)
        # ONNX puts a single element at 0, its reference at -0.5.
        assume(coordinates != "pytorch_half_pixel" or 1 not in made.shape)
        wanted = reference("Resize", x, roi, scales, sizes, **attributes)
        assert made.shape == wanted.shape and made.dtype == wanted.dtype
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("sizes", [(10, 12), (7, 9), (3, 4), (1, 8), (1, 1)])
def test_resize_to_a_size_is_that_of_onnx_runtime(coordinates: str, sizes: tuple[int, ...]) -> None:
    x = random_array(2, (1, 2, 5, 6))
    operands = [x, None, None, i64(1, 2, *sizes)]
    for mode in ROUNDING:
        check(
            "Resize",
            operands,
            mode="nearest",
            nearest_mode=mode,
            coordinate_transformation_mode=coordinates,
        )
    for interpolation in ("linear", "cubic"):
        check(
            "Resize",
            operands,
            mode=interpolation,
            coordinate_transformation_mode=coordinates,
            tolerance=1e-4,
        )


# -- images


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    x, grid = random_array(0, (2, 3, 5, 6)), 1.5 * random_array(1, (2, 4, 3, 2))
    attributes: dict[str, Any] = {
        "mode": mode,
        "padding_mode": padding,
        "align_corners": corners,
    }
    check("GridSample", [x, grid], tolerance=1e-4, **attributes)
    run("GridSample", x, grid, **attributes)


def test_points_far_away_are_no_bad_index() -> None:
    x, grid = numbered(1, 1, 2, 2), np.full((1, 1, 3, 2), np.nan, np.float32)
    grid[0, 0, 1], grid[0, 0, 2] = np.inf, -3e38
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            made = run("GridSample", x, grid, mode=mode, padding_mode=padding)
            assert made.shape == (1, 1, 1, 3)


@pytest.mark.parametrize("size", [(2, 3, 5, 6), (1, 1, 4, 5, 6)])
@pytest.mark.parametrize("corners", [0, 1])
def test_affine_grid(size: tuple[int, ...], corners: int) -> None:
    rank = len(size) - 2
    theta = random_array(0, (size[0], rank, rank + 1))
    made = run("AffineGrid", theta, i64(*size), align_corners=corners)
    wanted = reference("AffineGrid", theta, i64(*size), align_corners=corners)
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)


@FEW
@given(st.data(), arrays())
def test_center_crop_pad(data: st.DataObject, x: Array) -> None:
    target = [data.draw(st.integers(1, 7)) for _ in x.shape]
    same(run("CenterCropPad", x, i64(*target)), reference("CenterCropPad", x, i64(*target)))


@pytest.mark.parametrize(
    ("channels", "image", "attributes"),
    [
        (18, (5, 7), {}),
        (12, (6, 7), {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
        (6, (9, 8), {"dilations": [2, 3]}),
    ],
)
def test_col2im_adds_what_overlaps(
    channels: int, image: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    block = (2, 3)
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    pads = attributes.get("pads", [0] * 4)
    count = 1
    for k in range(2):
        room = image[k] + pads[k] + pads[k + 2] - (block[k] - 1) * dilations[k] - 1
        count *= room // strides[k] + 1
    x = random_array(0, (2, channels, count))
    made = run("Col2Im", x, i64(*image), i64(*block), **attributes)
    wanted = reference("Col2Im", x, i64(*image), i64(*block), **attributes)
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)


def tables(t: Tensor) -> list[Constant]:
    assert isinstance(t, Compute)
    read = [n.buffer for n in walk(t.body) if isinstance(n, Load)]
    return [b for b in read if isinstance(b, Constant)]


def test_regular_resizing_needs_no_tables() -> None:
    x = numbered(1, 2, 4, 6)
    for scale in (2.0, 3.0, 0.5):
        scales = np.array([1, 1, scale, scale], np.float32)
        made = expression("Resize", x, None, scales)
        assert not tables(made)
    half = np.array([1, 1, 1, 0.5], np.float32)
    assert not tables(expression("Resize", x, None, half, mode="linear"))


def test_resized_integers_are_rounded_and_held() -> None:
    x = np.array([0, 255, 0, 255, 255], np.uint8)
    made = run("Resize", x, None, None, i64(23), mode="cubic")
    same(made, reference("Resize", x, None, None, i64(23), mode="cubic"))
    assert made.min() == 0 and made.max() == 255


def test_much_smaller_images_sum_over_many_elements() -> None:
    x = random_array(0, (2, 90))
    attributes: dict[str, Any] = {"mode": "linear", "antialias": 1, "axes": [1]}
    made = run("Resize", x, None, None, i64(3), **attributes)
    wanted = np.stack(
        [reference("Resize", r, None, None, i64(3), mode="linear", antialias=1) for r in x]
    )
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)


def test_resize_refuses_what_it_does_not_know() -> None:
    x, twice = numbered(2, 3), np.array([1, 2], np.float32)
    for attributes in (
        {"mode": "other"},
        {"nearest_mode": "other"},
        {"coordinate_transformation_mode": "other"},
        {"mode": "nearest", "antialias": 1},
        {"axes": [0]},
        {"axes": [0, 0]},
    ):
        with pytest.raises(OperatorError):
            run("Resize", x, None, twice, **attributes)
    with pytest.raises(OperatorError):
        run("Resize", x)
    with pytest.raises(OperatorError):
        run("Resize", x, None, np.array([1, -2], np.float32))
