"""Reading images at points that come from data: GridSample, and AffineGrid, which makes such
points.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Expr, Operand, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, fail, inside, maximum, minimum, select
from tilewright.ops.positions import weighted
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, constant, known_ints

CUBIC = -0.75  # the parameter of Keys' kernel that GridSample fixes


@dataclass(frozen=True)
class Dimension:
    """One spatial dimension of the image that is sampled."""

    extent: int
    padding: str
    align_corners: bool

    @property
    def border(self) -> tuple[float, float]:
        """The coordinates at which the image ends."""
        return (0.0, self.extent - 1.0) if self.align_corners else (-0.5, self.extent - 0.5)

    def coordinate(self, n: Expr) -> Expr:
        """The coordinate of a point in [-1, 1]."""
        if self.align_corners:
            return (n + 1) * ((self.extent - 1) / 2)
        return ((n + 1) * self.extent - 1) * 0.5

    def moved_inside(self, x: Expr) -> Expr:
        """The coordinate, or what stands for it if it is outside."""
        if self.padding == "zeros":
            return x
        if self.padding == "reflection":
            x = self.reflected(x)
        return minimum(maximum(x, 0), self.extent - 1)

    def reflected(self, x: Expr) -> Expr:
        """The coordinate mirrored at the borders until it is between them."""
        low, high = self.border
        span = high - low
        if span <= 0:
            return x * 0
        turns = (x - low) * (1 / span)
        whole = apply(ScalarOp.FLOOR, turns)
        rest = turns - whole
        odd = (whole - apply(ScalarOp.FLOOR, whole * 0.5) * 2).ne(0)
        return select(odd, 1 - rest, rest) * span + low

    def pixel(self, i: Expr) -> tuple[Expr, Expr | None]:
        """The element that index i (a whole number) reads, and the condition that there is one."""
        if self.padding == "zeros":
            index = cast(DType.I64, i)
            return index, inside(index, self.extent)
        whole = apply(ScalarOp.RINT, self.reflected(i)) if self.padding == "reflection" else i
        return minimum(maximum(cast(DType.I64, whole), 0), self.extent - 1), None


@op("GridSample")
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """x of (N, C, spatial...) at the points of a grid (N, out..., number of spatial dimensions)."""
    rank = x.rank - 2
    fits = rank >= 1 and grid.rank == x.rank and grid.shape[0] == x.shape[0]
    if not fits or grid.shape[-1] != rank or padding_mode not in ("zeros", "border", "reflection"):
        raise fail(f"a grid of {grid.shape} does not fit {x.shape} (padding {padding_mode!r})")
    taps = _TAPS.get(mode)
    if taps is None:
        raise fail(f"{mode!r} is no interpolation")
    dims = [Dimension(n, padding_mode, bool(align_corners)) for n in x.shape[2:]]
    shape = (*x.shape[:2], *grid.shape[1:-1])
    dtype = grid.dtype.compute
    if x.size == 0:
        return compute(shape, lambda *i: 0, dtype=x.dtype)

    def element(n: Expr, c: Expr, *out: Expr) -> Operand:
        points = [cast(dtype, grid[(n, *out, rank - 1 - k)]) for k in range(rank)]
        places = [d.coordinate(p) for d, p in zip(dims, points, strict=True)]
        reads = [
            [(*d.pixel(at), weight) for at, weight in taps(d, p)]
            for d, p in zip(dims, places, strict=True)
        ]
        return cast(x.dtype, _sample(x, (n, c), reads))

    return compute(shape, element)


Tap = tuple[Expr, Expr | None]  # a coordinate that is a whole number, and its weight (None: one)
Read = tuple[Expr, Expr | None, Expr | None]  # an index, whether it is there, and its weight


def _nearest(d: Dimension, x: Expr) -> list[Tap]:
    return [(d.moved_inside(apply(ScalarOp.RINT, x)), None)]


def _linear(d: Dimension, x: Expr) -> list[Tap]:
    moved = d.moved_inside(x)
    low = apply(ScalarOp.FLOOR, moved)
    return [(low, low + 1 - moved), (low + 1, moved - low)]


def _cubic(d: Dimension, x: Expr) -> list[Tap]:
    low = apply(ScalarOp.FLOOR, x)
    return [(low + k, _keys(k, x - low)) for k in (-1, 0, 1, 2)]


def _keys(k: int, t: Expr) -> Expr:
    """The cubic kernel at the distance from low + k to low + t."""
    a = CUBIC
    distance = t - k if k <= 0 else k - t
    if k in (0, 1):
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a


_TAPS: dict[str, Callable[[Dimension, Expr], list[Tap]]] = {
    "nearest": _nearest,
    "linear": _linear,
    "cubic": _cubic,
}


def _sample(x: Tensor, lead: Sequence[Expr], reads: Sequence[list[Read]]) -> Expr:
    """The weighted sum over what is read in each dimension, the last innermost."""
    dtype = x.dtype.compute
    if not reads:
        return cast(dtype, x[tuple(lead)])
    values = []
    for at, present, _ in reads[0]:
        value = _sample(x, (*lead, at), reads[1:])
        values.append(value if present is None else select(present, value, 0))
    weights = [cast(dtype, w) for _, _, w in reads[0] if w is not None]
    return weighted(values, list(weights)) if weights else values[0]


@op("AffineGrid")
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """The points to which affine maps (N, 2, 3) or (N, 3, 4) take those of a regular grid."""
    batch, _, *spatial = known_ints(size)
    rank = len(spatial)
    if rank not in (2, 3) or theta.shape != (batch, rank, rank + 1):
        raise fail(f"maps of shape {theta.shape} do not fit a size of {(batch, *spatial)}")
    steps = [constant(_steps(n, bool(align_corners)), theta.dtype) for n in spatial]

    def element(n: Expr, *axes: Expr) -> Operand:
        out, row = axes[:-1], axes[-1]
        total: Expr = theta[n, row, rank]
        for column in range(rank):
            k = rank - 1 - column
            total = total + theta[n, row, column] * steps[k][out[k]]
        return total

    return compute((batch, *spatial, rank), element)


def _steps(n: int, align_corners: bool) -> np.ndarray:
    """n points from -1 to 1: with the ends, or the centres of n equal parts."""
    if align_corners:
        return np.linspace(-1.0, 1.0, n)
    return (2 * np.arange(n) + 1) / max(n, 1) - 1
