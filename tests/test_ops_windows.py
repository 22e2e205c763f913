"""Convolutions, pools and regions of interest against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tilewright.ops.convolution
import tilewright.ops.detection
import tilewright.ops.pooling  # noqa: F401  (registers the operators)
from operator_oracle import check, normal, own
from tilewright.dtypes import DType
from tilewright.errors import ExecutionError, OperatorError
from tilewright.loops.ir import Apply, Load, Select
from tilewright.ops.registry import find
from tilewright.ops.tensor import Compute, placeholder

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 7), (3, 2, 3), {}),
    ((2, 3, 6, 5), (4, 3, 3, 2), {"pads": [1, 0, 2, 1]}),
    ((1, 2, 7, 8), (4, 2, 3, 3), {"strides": [2, 3], "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ((1, 4, 6, 6), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((1, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    ((1, 4, 6, 6), (8, 1, 3, 3), {"group": 4}),
    ((1, 3, 5, 5), (2, 3, 1, 1), {}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"pads": [0, 1, 1, 0, 1, 0]}),
    ((1, 2, 7, 6), (3, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 2, 7, 6), (3, 2, 4, 3), {"auto_pad": "SAME_LOWER"}),
    ((1, 2, 7, 6), (3, 2, 4, 3), {"auto_pad": "VALID"}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(
    x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    b = [normal(w[0], seed=2)] if bias else []
    check("Conv", [normal(*x), normal(*w, seed=1), *b], kernel_shape=w[2:], **attributes)


def test_only_padded_dimensions_are_guarded() -> None:
    conv = find("", "Conv")
    assert conv is not None
    x, w = placeholder((1, 3, 8, 8), DType.F32), placeholder((4, 3, 3, 3), DType.F32)
    plain = conv(x, w)
    assert isinstance(plain, Compute) and isinstance(plain.body, Apply) and plain.channels_last
    assert all(isinstance(e, Load) for e in plain.body.args)
    padded = conv(x, w, pads=(1, 0, 1, 0))
    assert isinstance(padded, Compute) and isinstance(padded.body, Apply)
    guarded = padded.body.args[0]
    assert isinstance(guarded, Select) and isinstance(guarded.condition, Apply)
    assert all(
        isinstance(e, Apply) and isinstance(e.args[0], Apply) for e in guarded.condition.args
    )
    small = placeholder((4, 3, 2, 2), DType.F32)
    unread = conv(x, small, pads=(0, 0, 1, 1), strides=(2, 2))  # no window reaches the padding
    assert isinstance(unread, Compute) and isinstance(unread.body, Apply)
    assert isinstance(unread.body.args[0], Load)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 4),
    s=st.integers(1, 4),
    d=st.integers(1, 3),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
)
def test_conv_of_any_window(n: int, k: int, s: int, d: int, before: int, after: int) -> None:
    assume(n + before + after >= (k - 1) * d + 1)
    given = [normal(1, 2, n), normal(3, 2, k, seed=1)]
    check("Conv", given, strides=[s], dilations=[d], pads=[before, after])


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((1, 2), (3, 2), {}),
        ((1, 2, 5), (3, 2, 3, 3), {}),
        ((1, 2, 5), (3, 3, 3), {}),
        ((1, 2, 2), (3, 2, 3), {}),
        ((1, 2, 5), (3, 2, 3), {"strides": [0]}),
        ((1, 2, 5), (3, 2, 3), {"dilations": [-1]}),
        ((1, 2, 5), (3, 2, 3), {"strides": [1, 1]}),
        ((1, 2, 5), (3, 2, 3), {"pads": [-1, 0]}),
        ((1, 2, 5), (3, 2, 3), {"kernel_shape": [2]}),
        ((1, 2, 5), (3, 2, 3), {"group": 0}),
        ((1, 4, 5), (3, 2, 3), {"group": 2}),
        ((1, 2, 5), (3, 2, 3), {"strides": [1 << 60]}),
    ],
)
def test_conv_refuses(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    with pytest.raises(OperatorError):
        own("Conv", [normal(*x), normal(*w)], **attributes)


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 5), (2, 3, 3), {}),
    ((1, 2, 5), (2, 3, 3), {"strides": [2], "output_padding": [1]}),
    ((1, 2, 4, 5), (2, 3, 3, 2), {"strides": [3, 2], "pads": [1, 0, 2, 1]}),
    ((1, 2, 4, 5), (2, 3, 3, 2), {"strides": [2, 1], "dilations": [2, 3], "pads": [1, 1, 1, 1]}),
    ((1, 4, 4, 4), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 4, 4, 4), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    ((1, 2, 3, 3), (2, 3, 3, 3), {"strides": [3, 2], "output_shape": [10, 8]}),
    ((1, 2, 3, 3), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [6, 5]}),
    ((1, 2, 3, 3), (2, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 3, 3), (2, 3, 4, 4), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 2, 3, 2), (2, 2, 2, 2, 3), {"strides": [2, 1, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose(
    x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    b = [normal(w[1] * attributes.get("group", 1), seed=2)] if bias else []
    check("ConvTranspose", [normal(*x), normal(*w, seed=1), *b], **attributes)


def test_deform_conv_without_offsets_is_a_convolution() -> None:
    x, w = normal(1, 4, 6, 6), normal(2, 2, 3, 3, seed=1)
    offset, mask = np.zeros((1, 2 * 18, 6, 6), np.float32), np.ones((1, 18, 6, 6), np.float32)
    common: dict[str, Any] = {"pads": (1, 1, 1, 1), "group": 2}
    wanted = own("Conv", [x, w], **common)[0]
    actual = own("DeformConv", [x, w, offset, None, mask], offset_group=2, **common)[0]
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_deform_conv(strides: list[int]) -> None:
    x, w = normal(1, 4, 6, 6), normal(2, 2, 2, 2, seed=1)
    n = 5 if strides == [1, 1] else 3
    offset, mask = normal(1, 16, n, n, seed=2) * 2, normal(1, 8, n, n, seed=3)
    given = [x, w, offset, normal(2, seed=4), mask]
    try:
        check("DeformConv", given, opset=22, strides=strides, group=2, offset_group=2)
    except Exception as e:  # ONNX Runtime has it in few builds
        if "NOT_IMPLEMENTED" not in str(e):
            raise
        pytest.skip("ONNX Runtime lacks DeformConv")


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [3, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 2], "auto_pad": "VALID"},
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pools(op: str, attributes: dict[str, Any]) -> None:
    check(op, [normal(2, 2, 7, 8)], **attributes)


@pytest.mark.parametrize("attributes", POOLS)
def test_average_pool_with_padding(attributes: dict[str, Any]) -> None:
    check("AveragePool", [normal(1, 2, 7, 8)], count_include_pad=1, **attributes)


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_positions(attributes: dict[str, Any], storage_order: int) -> None:
    x = np.round(normal(2, 2, 7, 8))  # with ties
    check("MaxPool", [x], 2, storage_order=storage_order, **attributes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float64])
def test_max_pool_types(dtype: Any) -> None:
    check("MaxPool", [(normal(1, 2, 6) * 30).astype(dtype)], kernel_shape=[3], pads=[1, 1])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms(p: int) -> None:
    check("LpPool", [normal(1, 2, 7)], kernel_shape=[3], p=p)
    check("GlobalLpPool", [normal(1, 2, 3, 4)], p=p)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 2, 3, 4)])
def test_global_pools(op: str, shape: tuple[int, ...]) -> None:
    check(op, [normal(*shape)])


def test_max_unpool_inverts_max_pool() -> None:
    x = normal(1, 2, 6, 6)
    values, positions = own("MaxPool", [x], 2, kernel_shape=(2, 2), strides=(2, 2))
    check("MaxUnpool", [values, positions], kernel_shape=[2, 2], strides=[2, 2])


def test_max_unpool_into_a_greater_shape() -> None:
    values, positions = normal(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]], np.int64)
    shape = np.array([1, 1, 5, 5], np.int64)
    y = own("MaxUnpool", [values, positions, shape], kernel_shape=(2, 2), strides=(2, 2))[0]
    wanted = np.zeros(16, np.float32)
    wanted[positions.ravel()] = values.ravel()
    np.testing.assert_array_equal(y[0, 0, :4, :4], wanted.reshape(4, 4))
    assert not y[0, 0, 4].any() and not y[0, 0, :, 4].any()


def test_max_unpool_checks_positions() -> None:
    given = [normal(1, 1, 2), np.array([[[0, 4]]], np.int64)]
    with pytest.raises(ExecutionError):
        own("MaxUnpool", given, kernel_shape=(2,), strides=(2,))


ROIS = np.array(
    [[0.5, 1.0, 4.2, 5.9], [-2.0, -1.0, 3.0, 2.5], [3.0, 3.0, 12.0, 9.0], [2, 2, 1, 1]], np.float32
)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, sampling: int, transform: str) -> None:
    attributes: dict[str, Any] = {
        "output_height": 2,
        "output_width": 3,
        "spatial_scale": 0.75,
        "mode": mode,
    }
    rois = ROIS[:3] if transform == "half_pixel" else ROIS
    batch = np.array([0, 1, 1, 0], np.int64)[: len(rois)]
    given = [np.abs(normal(2, 3, 6, 7)), rois, batch]
    check(
        "RoiAlign",
        given,
        sampling_ratio=sampling,
        coordinate_transformation_mode=transform,
        **attributes,
    )


def test_roi_align_checks_batch_indices() -> None:
    with pytest.raises(ExecutionError):
        own("RoiAlign", [normal(1, 1, 4, 4), ROIS[:1], np.array([1], np.int64)])


def test_max_roi_pool() -> None:
    batch = np.array([[0.0], [1.0], [1.0], [0.0]], np.float32)
    given = [normal(2, 3, 6, 7), np.concatenate([batch, ROIS], axis=1)]
    check("MaxRoiPool", given, pooled_shape=[2, 3], spatial_scale=1.0)


@pytest.mark.parametrize("center", [0, 1])
def test_non_max_suppression(center: int) -> None:
    random = np.random.default_rng(0)
    boxes, scores = (
        random.random((2, 12, 4)).astype(np.float32),
        random.random((2, 3, 12)).astype(np.float32),
    )
    most, floor = np.array([4], np.int64), np.array([0.2], np.float32)
    overlap = np.array([0.3], np.float32)
    given: list[np.ndarray | None] = [boxes, scores, most, overlap, floor]
    check("NonMaxSuppression", given, center_point_box=center)
    check("NonMaxSuppression", [boxes, scores])
