"""Tables for resizing along one axis: where each output element lies, and what it weighs there.

Everything here is NumPy on a few numbers per output element; nothing reads the tensor itself.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilewright.ops.common import fail

Array = np.ndarray

CROP = "tf_crop_and_resize"
"""The only mode of coordinates that reads the roi, and that leaves the input."""


@dataclass(frozen=True)
class Axis:
    """One axis to be resized; `scale` may differ from out / extent, (start, end) is its roi."""

    axis: int
    extent: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Whether resizing keeps every element where it is."""
        whole = (self.start, self.end) == (0.0, 1.0)
        return self.out == self.extent and math.isclose(self.scale, 1.0) and whole


@dataclass(frozen=True)
class Sampling:
    """How elements are read between elements: ONNX's attributes, by shorter names."""

    mode: str
    coordinates: str
    nearest: str
    coefficient: float
    antialias: bool
    inside: bool
    extrapolation: float


@dataclass(frozen=True)
class Taps:
    """For each tap and output element, the input position and its weight: (taps, out) both."""

    positions: Array
    weights: Array


def coordinates(a: Axis, mode: str, dtype: type[np.floating] = np.float64) -> Array:
    """The position in the input of each output element, between elements in general."""
    y, half = np.arange(a.out, dtype=dtype), dtype(0.5)
    scale, n, width = dtype(a.scale), dtype(a.extent), dtype(a.scale * a.extent)
    match mode:
        case "align_corners":
            x = y * 0 if width == 1 else y * (n - 1) / (width - 1)
        case "asymmetric":
            x = y / scale
        case "tf_crop_and_resize":
            span = dtype(a.end - a.start) * (n - 1)
            inner = y * 0 + span / 2 if width == 1 else y * span / (width - 1)
            x = inner + dtype(a.start) * (n - 1)
        case "pytorch_half_pixel":
            x = (y + half) / scale - half if a.out > 1 else y * 0
        case "half_pixel":
            x = (y + half) / scale - half
        case "half_pixel_symmetric":
            x = n / 2 * (1 - dtype(a.out) / width) + (y + half) / scale - half
        case _:
            raise fail(f"coordinate_transformation_mode {mode!r} is unknown")
    return np.asarray(x, dtype)


def extrapolated(a: Axis, how: Sampling) -> Array | None:
    """Which output elements lie outside the input, in the mode that asks; None if none do."""
    if how.coordinates != CROP:
        return None
    x = coordinates(a, how.coordinates)
    outside = (x < 0) | (x > a.extent - 1)
    return outside if outside.any() else None


def nearest(a: Axis, how: Sampling) -> Array:
    """The input element nearest to each output element. Ties are decided in float32, the type of
    the scales, in which most positions that should be whole numbers are.
    """
    x = coordinates(a, how.coordinates, np.float32)
    base = np.floor(x)
    rest = x - base
    match how.nearest:
        case "round_prefer_floor":
            up = rest > 0.5
        case "round_prefer_ceil":
            up = rest >= 0.5
        case "floor":
            up = np.zeros(a.out, bool)
        case "ceil":
            up = rest > 0
        case _:
            raise fail(f"nearest_mode {how.nearest!r} is unknown")
    return _held(base + up, a.extent)


def neighbours(a: Axis, how: Sampling, dtype: type[np.floating]) -> Taps:
    """The elements before and after each position held inside the input, and their weights, all
    in `dtype`. Where there is no element after it, the last one counts twice by half.
    """
    x = np.clip(coordinates(a, how.coordinates, dtype), 0, dtype(a.extent - 1))
    before = np.floor(x)
    after = np.minimum(before + 1, dtype(a.extent - 1))
    weights = np.where(before == after, dtype(0.5), np.abs(x - np.stack([after, before])))
    used = np.any(weights != 0, axis=1)
    positions = np.stack([before, after]).astype(np.int64)
    return Taps(positions[used], weights[used])


def taps(a: Axis, how: Sampling) -> Taps:
    """The taps of linear or cubic resizing; with `inside`, those outside the input weigh nothing.

    With `antialias`, shrinking widens the kernel to all elements that an output element covers.
    """
    x = coordinates(a, how.coordinates)
    shrink = min(a.scale, 1.0) if how.antialias else 1.0
    reach = {"linear": 1.0, "cubic": 2.0}[how.mode]
    first = math.floor(-reach / shrink) + 1
    base = np.ceil(x) - 1  # an element that is hit exactly counts as the one on the right
    positions = base + np.arange(first, 2 - first)[:, None]
    distance = np.abs(positions - x) * shrink
    weights = _linear(distance) if how.mode == "linear" else _cubic(distance, how.coefficient)
    if how.inside:
        weights = np.where((positions < 0) | (positions >= a.extent), 0.0, weights)
    if how.inside or how.antialias:
        total = weights.sum(axis=0)
        weights = weights / np.where(total == 0, 1.0, total)
    used = np.any(weights != 0, axis=1)
    return Taps(_held(positions, a.extent)[used], weights[used])


def _linear(distance: Array) -> Array:
    return np.asarray(np.clip(1 - distance, 0, 1))


def _cubic(d: Array, a: float) -> Array:
    """Keys' kernel: a cubic within one element, another within two."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _held(positions: Array, extent: int) -> Array:
    return np.asarray(np.clip(positions, 0, extent - 1).astype(np.int64))
