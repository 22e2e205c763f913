"""Resize: each output element a weighted sum of a few input elements, one axis after the other.

Linear interpolation of floats takes all axes at once, and sums in the order of ONNX Runtime: models
that quantise what was resized magnify a difference of one bit.

Positions and weights are small constant tables, or plain arithmetic where a table says no more.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Expr, Operand, apply, as_expr
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, fail, maximum, minimum, normalize_axis, select
from tilewright.ops.quantization import saturated
from tilewright.ops.registry import op
from tilewright.ops.resampling import (
    CROP,
    Axis,
    Sampling,
    Taps,
    extrapolated,
    nearest,
    neighbours,
    taps,
)
from tilewright.ops.tensor import Tensor, compute, constant, known, known_ints

UNROLLED = 16
"""Up to this many taps are written out; more are a reduction."""


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
    how = Sampling(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
        extrapolation_value,
    )
    return _resized(x, plan, how)


def _plan(
    x: Tensor,
    axes: Sequence[int],
    roi: Tensor | None,
    scales: Tensor | None,
    sizes: Tensor | None,
    policy: str,
) -> list[Axis]:
    """The axes with their scales and extents, from either scales or sizes."""
    extents = [x.shape[a] for a in axes]
    if sizes is not None and sizes.size:
        outs, factors = _from_sizes(extents, known_ints(sizes), policy)
    elif scales is not None and scales.size:
        outs, factors = _from_scales(extents, known(scales))
    else:
        raise fail("either scales or sizes are needed")
    area = [0.0] * len(axes) + [1.0] * len(axes)
    if roi is not None and roi.size:
        area = [float(v) for v in known(roi).ravel()]
    if len(set(axes)) != len(axes) or len(area) != 2 * len(axes):
        raise fail(f"roi has {len(area)} entries for axes {tuple(axes)}")
    ends = zip(area[: len(axes)], area[len(axes) :])
    return [Axis(*one, *span) for one, span in zip(zip(axes, extents, outs, factors), ends)]


def _from_scales(extents: Sequence[int], scales: np.ndarray) -> tuple[list[int], list[float]]:
    if scales.size != len(extents) or not np.all(scales > 0) or not np.all(np.isfinite(scales)):
        raise fail(f"scales {scales.tolist()} do not fit extents {tuple(extents)}")
    outs = [int(np.float32(n) * np.float32(s)) for n, s in zip(extents, scales.ravel())]
    return outs, [float(s) for s in scales.ravel()]


def _from_sizes(
    extents: Sequence[int], sizes: list[int], policy: str
) -> tuple[list[int], list[float]]:
    if len(sizes) != len(extents) or min(sizes, default=0) < 0:
        raise fail(f"sizes {tuple(sizes)} do not fit extents {tuple(extents)}")
    scales = [m / n if n else 1.0 for m, n in zip(sizes, extents)]
    if policy == "stretch":
        return sizes, scales
    if policy not in ("not_larger", "not_smaller"):
        raise fail(f"keep_aspect_ratio_policy {policy!r} is unknown")
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [int(scale * n + 0.5) for n in extents], [scale] * len(extents)


def _resized(x: Tensor, plan: Sequence[Axis], how: Sampling) -> Tensor:
    shape = list(x.shape)
    for a in plan:
        shape[a.axis] = a.out
    if 0 in shape:
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    if x.size == 0:
        raise fail(f"nothing can be resized to {tuple(shape)}")
    moved = [a for a in plan if not a.is_identity]
    if how.mode == "nearest":
        if how.antialias:
            raise fail("the nearest elements have no antialiasing")
        return _picked(x, shape, moved, how)
    if how.mode not in ("linear", "cubic"):
        raise fail(f"mode {how.mode!r} is not nearest, linear or cubic")
    if how.mode == "linear" and x.dtype.is_float and not (how.antialias or how.inside):
        return _rounded(_interpolated(x, shape, moved, how), x.dtype) if moved else x
    result = x
    for a in sorted(moved, key=lambda a: a.scale):  # what shrinks most goes first
        result = _weighted(result, a, taps(a, how), _arithmetic(x.dtype), how)
    return _rounded(result, x.dtype) if moved else x


def _picked(x: Tensor, shape: Sequence[int], moved: Sequence[Axis], how: Sampling) -> Tensor:
    """For each element the nearest one of x."""
    places = {a.axis: _place(nearest(a, how), a.extent) for a in moved}
    guards = [(a, mask) for a in moved if (mask := _mask(a, how)) is not None]

    def element(*i: Expr) -> Operand:
        value: Expr = x[[places[k](v) if k in places else v for k, v in enumerate(i)]]
        for a, mask in guards:
            value = select(mask[i[a.axis]], _number(how.extrapolation, x.dtype), value)
        return value

    return compute(shape, element)


def _interpolated(x: Tensor, shape: Sequence[int], moved: Sequence[Axis], how: Sampling) -> Tensor:
    """The sum over the corners around each position: weights of all axes, times the element."""
    wide = x.dtype.compute
    inner_first = sorted(moved, key=lambda a: -a.axis)
    windows = [neighbours(a, how, wide.numpy.type) for a in inner_first]
    tables = [constant(w.weights, wide) for w in windows]
    corners = [c[::-1] for c in product(*(range(len(w.weights)) for w in windows[::-1]))]

    def element(*i: Expr) -> Operand:
        total: Expr | None = None
        for corner in corners:
            index, weight = list(i), None
            for a, window, table, k in zip(inner_first, windows, tables, corner):
                index[a.axis] = _place(window.positions[k], a.extent)(i[a.axis])
                factor = _factor(window.weights[k], table, k)(i[a.axis])
                weight = factor if weight is None else weight * factor
            assert weight is not None
            term = weight * cast(wide, x[index])
            total = term if total is None else total + term
        return _number(0.0, wide) if total is None else total

    result: Tensor = compute(shape, element)
    for a in moved:
        mask = _mask(a, how)
        if mask is not None:
            result = _extrapolated(result, mask, a.axis, how.extrapolation)
    return result


def _weighted(x: Tensor, a: Axis, window: Taps, wide: DType, how: Sampling) -> Tensor:
    """x resized along one axis, in the type `wide`."""
    count = len(window.weights)
    weights = constant(window.weights, wide)
    mask = _mask(a, how)
    shape = [a.out if k == a.axis else n for k, n in enumerate(x.shape)]
    if count > UNROLLED:
        positions = constant(window.positions)

        def term(*i: Expr) -> Operand:
            column, k = i[a.axis], i[-1]
            at = minimum(maximum(positions[k, column], 0), a.extent - 1)
            return cast(wide, x[_with(i[:-1], a.axis, at)]) * weights[k, column]

        total: Tensor = compute(shape, term, reduce=ScalarOp.ADD, over=[count])
    else:
        places = [_place(p, a.extent) for p in window.positions]
        factors = [_factor(w, weights, k) for k, w in enumerate(window.weights)]

        def element(*i: Expr) -> Operand:
            column = i[a.axis]
            value: Expr | None = None
            for place, factor in zip(places, factors):
                product = cast(wide, x[_with(i, a.axis, place(column))]) * factor(column)
                value = product if value is None else value + product
            return _number(0.0, wide) if value is None else value

        total = compute(shape, element)
    return total if mask is None else _extrapolated(total, mask, a.axis, how.extrapolation)


def _extrapolated(x: Tensor, mask: Tensor, axis: int, value: float) -> Tensor:
    return compute(x.shape, lambda *i: select(mask[i[axis]], _number(value, x.dtype), x[i]))


def _mask(a: Axis, how: Sampling) -> Tensor | None:
    outside = extrapolated(a, how)
    return None if outside is None else constant(outside)


def _place(positions: np.ndarray, extent: int) -> Callable[[Expr], Expr]:
    """positions[i] as a function of i: arithmetic if it is regular, else a table.

    The table is ours, so its entries are held inside for the sake of proof only.
    """
    i = np.arange(len(positions))
    start, step = int(positions[0]), int(positions[1] - positions[0]) if len(i) > 1 else 1
    if step > 0 and np.array_equal(positions, start + i * step):
        return lambda v: v * step + start if step > 1 else v + start if start else v
    repeats = int(np.argmax(positions != start)) if start == 0 else 0
    if repeats > 1 and np.array_equal(positions, i // repeats):
        return lambda v: v // repeats
    table = constant(positions)
    return lambda v: minimum(maximum(table[v], 0), extent - 1)


def _factor(values: np.ndarray, weights: Tensor, tap: int) -> Callable[[Expr], Expr]:
    """weights[tap, i] as a function of i: a number if it is the same everywhere."""
    if np.all(values == values[0]):
        return lambda v: _number(float(values[0]), weights.dtype)
    return lambda v: weights[tap, v]


def _arithmetic(dtype: DType) -> DType:
    """The type in which weighted sums of elements are exact enough."""
    if dtype.is_float:
        return dtype.compute
    return DType.F32 if dtype.bits <= 16 else DType.F64


def _rounded(x: Tensor, dtype: DType) -> Tensor:
    """x in the operand's type: integers to the nearest even, and held within their range."""
    if dtype.is_float:
        return x if x.dtype is dtype else compute(x.shape, lambda *i: cast(dtype, x[i]))
    if not dtype.is_integer:
        raise fail(f"elements of type {dtype.name} cannot be weighted")
    return compute(x.shape, lambda *i: saturated(apply(ScalarOp.RINT, x[i]), None, dtype))


def _number(value: float, dtype: DType) -> Expr:
    return as_expr(value, dtype)


def _with(index: Sequence[Expr], at: int, value: Expr) -> list[Expr]:
    return [value if k == at else v for k, v in enumerate(index)]
