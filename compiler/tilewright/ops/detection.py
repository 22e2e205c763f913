"""Operators on regions of interest: RoiAlign, MaxRoiPool and NonMaxSuppression.

How many elements a region covers is known only at run time, so the first two are nests whose inner
loops have extents that come from data. The innermost loop runs over the channels, which share all
index arithmetic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Block,
    Buffer,
    Cast,
    Expr,
    For,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    apply,
    as_expr,
    dtype_of,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, checked_index, fail, maximum, minimum, select
from tilewright.ops.registry import host_op, op
from tilewright.ops.tensor import Tensor, fresh_axis, nest

LOCAL_BYTES = 256 << 10


def _loop(
    extent: Expr | int, body: Callable[[Expr], Stmt], kind: LoopKind = LoopKind.SERIAL
) -> Stmt:
    axis = Var(fresh_axis())
    return For(
        axis.name, index_const(extent) if isinstance(extent, int) else extent, body(axis), kind
    )


def _per_region(
    y: Tensor, start: Expr, body: Callable[..., tuple[Stmt, Callable[[Load], Expr]]]
) -> Stmt:
    """For every region and output cell: an accumulator for each channel, begun at `start`, filled
    by the statement that body(accumulator, n, h, w) returns, and stored through the function beside
    it.
    """
    regions, channels, height, width = y.shape
    dtype = y.dtype.compute
    acc = Buffer(fresh_axis("acc"), dtype, (channels,), space=Space.LOCAL)
    if channels * dtype.itemsize > LOCAL_BYTES:
        raise UnsupportedError(f"{channels} channels are too many for a task's scratch")

    def cell(n: Expr, h: Expr, w: Expr) -> Stmt:
        fill, finish = body(acc, n, h, w)
        begin = _loop(channels, lambda c: Store(acc, (c,), start))
        end = _loop(
            channels, lambda c: Store(y, (n, c, h, w), cast(y.dtype, finish(Load(acc, (c,)))))
        )
        return Alloc(acc, Block((begin, fill, end)))

    return _loop(
        regions,
        lambda n: _loop(height, lambda h: _loop(width, lambda w: cell(n, h, w))),
        LoopKind.PARALLEL,
    )


@dataclass(frozen=True)
class _Span:
    """A region along one spatial dimension: where it starts, how long a cell is, how many samples a
    cell has.
    """

    start: Expr
    bin: Expr
    samples: Expr


@dataclass(frozen=True)
class _Sample:
    """A point between two elements of an input dimension; weights are zero outside the input."""

    low: Expr
    high: Expr
    low_weight: Expr
    high_weight: Expr


@op("RoiAlign")
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean (or greatest) of samples, interpolated linearly, on a grid over each cell of each
    region.

    https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    _check_regions(x, rois, 4, (output_height, output_width))
    if batch_indices.shape != (rois.shape[0],):
        raise fail(f"{rois.shape[0]} regions, but batch indices of shape {batch_indices.shape}")
    average, half_pixel = mode.lower() == "avg", coordinate_transformation_mode == "half_pixel"
    dtype = x.dtype.compute

    def fill(acc: Buffer, n: Expr, h: Expr, w: Expr) -> tuple[Stmt, Callable[[Load], Expr]]:
        image = checked_index(batch_indices[n], x.shape[0], wrap=False)
        corner = [
            Cast(dtype, rois[n, k]) * spatial_scale - (0.5 if half_pixel else 0.0) for k in range(4)
        ]
        down = _span(corner[1], corner[3], output_height, sampling_ratio, half_pixel)
        across = _span(corner[0], corner[2], output_width, sampling_ratio, half_pixel)

        def add(c: Expr, i: Expr, j: Expr) -> Stmt:
            a, b = _sample(down, h, i, x.shape[2]), _sample(across, w, j, x.shape[3])
            corners = [
                cast(dtype, x[image, c, r, s]) * (p * q)
                for r, p in ((a.low, a.low_weight), (a.high, a.high_weight))
                for s, q in ((b.low, b.low_weight), (b.high, b.high_weight))
            ]
            monoid = ScalarOp.ADD if average else ScalarOp.MAX
            return Accumulate(
                acc, (c,), monoid, functools.reduce(lambda e, f: apply(monoid, e, f), corners)
            )

        grid = _loop(
            down.samples,
            lambda i: _loop(across.samples, lambda j: _loop(x.shape[1], lambda c: add(c, i, j))),
        )
        count = down.samples * across.samples
        if average:
            return grid, lambda total: total / Cast(dtype, maximum(count, 1))
        return grid, lambda total: select(count > 0, total, 0)

    start = as_expr(0.0 if average else -math.inf, dtype)
    shape = (rois.shape[0], x.shape[1], output_height, output_width)
    return nest([(shape, x.dtype)], lambda y: _per_region(y, start, fill), "RoiAlign")[0]


def _span(low: Expr, high: Expr, cells: int, ratio: int, half_pixel: bool) -> _Span:
    length: Expr = high - low
    if not half_pixel:
        length = maximum(length, 1.0)
    size = length / cells
    if ratio > 0:
        return _Span(low, size, index_const(ratio))
    return _Span(low, size, maximum(Cast(DType.I64, apply(ScalarOp.CEIL, size)), 0))


def _sample(span: _Span, cell: Expr, i: Expr, extent: int) -> _Sample:
    dtype = dtype_of(span.start)
    offset = (Cast(dtype, i) + 0.5) * span.bin / Cast(dtype, span.samples)
    position = span.start + Cast(dtype, cell) * span.bin + offset
    valid = (position >= -1.0) & (position <= float(extent))
    clamped = minimum(maximum(position, 0.0), float(extent - 1))
    low = minimum(maximum(Cast(DType.I64, clamped), 0), extent - 1)
    fraction = clamped - Cast(dtype, low)
    return _Sample(
        low,
        minimum(low + 1, extent - 1),
        select(valid, 1.0 - fraction, 0),
        select(valid, fraction, 0),
    )


@op("MaxRoiPool")
def max_roi_pool(
    x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Tensor:
    """The greatest element in each cell of each region, zero for an empty cell; a region is a batch
    index and two corners, scaled and rounded. https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html
    """
    if len(pooled_shape) != 2:
        raise fail(f"pooled_shape {tuple(pooled_shape)} must have two entries")
    height, width = (int(n) for n in pooled_shape)
    _check_regions(x, rois, 5, (height, width))
    dtype = x.dtype.compute

    def fill(acc: Buffer, n: Expr, h: Expr, w: Expr) -> tuple[Stmt, Callable[[Load], Expr]]:
        image = checked_index(rois[n, 0], x.shape[0], wrap=False)
        corner = [
            Cast(DType.I64, apply(ScalarOp.FLOOR, Cast(dtype, rois[n, k]) * spatial_scale + 0.5))
            for k in range(1, 5)
        ]
        top, rows = _cell_range(corner[1], corner[3], h, height, x.shape[2])
        left, columns = _cell_range(corner[0], corner[2], w, width, x.shape[3])

        def take(c: Expr, i: Expr, j: Expr) -> Stmt:
            row, column = minimum(top + i, x.shape[2] - 1), minimum(left + j, x.shape[3] - 1)
            return Accumulate(acc, (c,), ScalarOp.MAX, cast(dtype, x[image, c, row, column]))

        grid = _loop(
            rows, lambda i: _loop(columns, lambda j: _loop(x.shape[1], lambda c: take(c, i, j)))
        )
        return grid, lambda greatest: select((rows > 0) & (columns > 0), greatest, 0)

    shape = (rois.shape[0], x.shape[1], height, width)
    start = as_expr(-math.inf, dtype)
    return nest([(shape, x.dtype)], lambda y: _per_region(y, start, fill), "MaxRoiPool")[0]


def _cell_range(low: Expr, high: Expr, cell: Expr, cells: int, extent: int) -> tuple[Expr, Expr]:
    """The first position of a cell and how many it has, both within the input."""
    size = Cast(DType.F32, maximum(high - low + 1, 1)) / cells
    first = Cast(DType.I64, apply(ScalarOp.FLOOR, Cast(DType.F32, cell) * size)) + low
    last = Cast(DType.I64, apply(ScalarOp.CEIL, Cast(DType.F32, cell + 1) * size)) + low
    start, end = (minimum(maximum(p, 0), extent) for p in (first, last))
    return start, maximum(end - start, 0)


def _check_regions(x: Tensor, rois: Tensor, columns: int, cells: tuple[int, int]) -> None:
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != columns or min(cells) < 1:
        raise fail(
            f"regions of shape {rois.shape} into {cells} cells do not fit an input of {x.shape}"
        )
    if 0 in x.shape:
        raise fail(f"an input of shape {x.shape} has no elements to sample")
    if not x.dtype.is_float:
        raise fail(f"regions of {x.dtype.name} elements cannot be sampled")


@host_op("NonMaxSuppression")
def non_max_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    max_output_boxes_per_class: np.ndarray | None = None,
    iou_threshold: np.ndarray | None = None,
    score_threshold: np.ndarray | None = None,
    *,
    center_point_box: int = 0,
) -> np.ndarray:
    """[batch, class, box] of the boxes that are kept, by class and falling score.

    https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html
    """
    most = (
        int(max_output_boxes_per_class.ravel()[0]) if max_output_boxes_per_class is not None else 0
    )
    overlap = float(iou_threshold.ravel()[0]) if iou_threshold is not None else 0.0
    least = float(score_threshold.ravel()[0]) if score_threshold is not None else -math.inf
    kept = [
        (n, c, int(box))
        for n in range(scores.shape[0])
        for c in range(scores.shape[1])
        for box in _kept(
            _corners(boxes[n], bool(center_point_box)), scores[n, c], most, overlap, least
        )
    ]
    return np.array(kept, np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, centered: bool) -> np.ndarray:
    """Boxes as (low y, low x, high y, high x)."""
    if centered:
        x, y, w, h = np.moveaxis(boxes.astype(np.float32), -1, 0)
        return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=-1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _kept(
    boxes: np.ndarray, scores: np.ndarray, most: int, overlap: float, least: float
) -> list[int]:
    """The boxes of one class that overlap no better one too much."""
    candidates = np.flatnonzero(scores > least)
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while candidates.size and len(kept) < most:
        best, candidates = int(candidates[0]), candidates[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[candidates, :2])
        high = np.minimum(boxes[best, 2:], boxes[candidates, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=-1)
        union = area[best] + area[candidates] - shared
        ratio = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        candidates = candidates[ratio <= overlap]
    return kept
