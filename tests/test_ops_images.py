"""Resize, GridSample and other operators on images: against ONNX Runtime and ONNX's reference.
Every result is also lowered, so that the verifier sees its indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from operator_evaluation import (
    FEW,
    Array,
    arrays,
    expression,
    i64,
    numbered,
    reference,
    run,
    same,
)
from operator_oracle import check
from strategies import random_array, shapes
from tilewright.errors import OperatorError
from tilewright.loops.ir import Load, walk
from tilewright.ops.tensor import (
    Compute,
    Constant,
    Tensor,
)

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
