"""Resize: one axis after the other, each output element a weighted sum of a few input elements.

Positions and weights are small constant tables, or plain arithmetic where a table says no more.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops import resampling
from tilewright.ops.common import cast, fail, maximum, minimum, normalize_axis, select
from tilewright.ops.registry import op
from tilewright.ops.resampling import Axis, Taps
from tilewright.ops.tensor import Tensor, compute, constant, known, known_ints, scalar

UNROLLED = 16
"""Up to this many taps are written out; more are a reduction."""

CROP = "tf_crop_and_resize"


@op("Resize")
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    where = [normalize_axis(a, x.rank) for a in (range(x.rank) if axes is None else axes)]
    area = roi if coordinate_transformation_mode == CROP else None
    plan = _plan(x, where, area, scales, sizes, keep_aspect_ratio_policy)
    shape = list(x.shape)
    for a in plan:
        shape[a.axis] = a.out
    if 0 in shape:
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    if x.size == 0:
        raise fail(f"nothing can be resized to {tuple(shape)}")
    moved = [a for a in plan if not a.is_identity]
    if mode == "nearest":
        if antialias:
            raise fail("nearest elements have no antialiasing")
        positions = {
            a.axis: resampling.nearest(a, coordinate_transformation_mode, nearest_mode)
            for a in moved
        }
        outside = _outside(moved, coordinate_transformation_mode)
        return _picked(x, shape, positions, outside, extrapolation_value)
    if mode not in ("linear", "cubic"):
        raise fail(f"mode {mode!r} is not nearest, linear or cubic")
    wide = _arithmetic(x.dtype)
    for a in moved:
        taps = resampling.taps(
            a,
            coordinate_transformation_mode,
            mode,
            cubic_coeff_a,
            bool(antialias),
            bool(exclude_outside),
        )
        outside = _outside([a], coordinate_transformation_mode)
        x = _weighted(x, a, taps, wide, outside, extrapolation_value)
    return x
