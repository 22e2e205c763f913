"""Images cut and joined: Col2Im, CenterCropPad.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.loops.ir import Expr, Operand
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import (
    fail,
    inside,
    maximum,
    minimum,
    normalize_axis,
    reshape_to,
    select,
)
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, known_ints
from tilewright.ops.transposed import TransposedWindow
from tilewright.ops.windows import both_sides, per_dimension


@op("Col2Im")
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The image whose sliding blocks are columns of x (N, C * block, number of blocks); where
    blocks
    overlap, they are added.
    """
    image, block = known_ints(image_shape), known_ints(block_shape)
    rank = len(image)
    dims = _windows(image, block, dilations, pads, strides)
    size, count = prod(block), prod(d.extent for d in dims)
    if x.rank != 3 or x.shape[1] % size or x.shape[2] != count:
        raise fail(f"{x.shape} does not hold {count} blocks of {block} in an image of {image}")
    channels = x.shape[1] // size
    parts = reshape_to(x, (x.shape[0], channels, *block, *(d.extent for d in dims)))

    def element(n: Expr, c: Expr, *axes: Expr) -> Operand:
        out, kernel = axes[:rank], axes[rank:]
        reads = [d.read(o, k) for d, o, k in zip(dims, out, kernel, strict=True)]
        # Held inside where a guard says so anyway: merged with others, only that can be proved.
        at = [_held(r.position, d.extent) if r.valid else r.position for d, r in zip(dims, reads)]
        value: Expr = parts[(n, c, *kernel, *at)]
        for r in reads:
            value = value if r.valid is None else select(r.valid, value, 0)
        return value

    shape = (x.shape[0], channels, *image)
    return compute(shape, element, reduce=ScalarOp.ADD, over=block)


def _held(i: Expr, extent: int) -> Expr:
    return minimum(maximum(i, 0), extent - 1)


def _windows(
    image: Sequence[int],
    block: Sequence[int],
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> list[TransposedWindow]:
    rank = len(image)
    if rank == 0 or len(block) != rank or min((*image, *block)) < 1:
        raise fail(f"blocks of {block} in an image of {image}")
    steps = per_dimension("strides", strides, rank, 1)
    gaps = per_dimension("dilations", dilations, rank, 1)
    if min((*steps, *gaps)) < 1:
        raise fail("strides and dilations must be positive")
    made = []
    for k, (before, after) in enumerate(both_sides(pads, rank)):
        room = image[k] + before + after - (block[k] - 1) * gaps[k] - 1
        if room < 0:
            raise fail(f"a block of {block[k]} does not fit an extent of {image[k]}")
        count = room // steps[k] + 1
        made.append(TransposedWindow(count, block[k], steps[k], gaps[k], before, image[k]))
    return made


@op("CenterCropPad")
def center_crop_pad(x: Tensor, shape: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """The middle of x in some dimensions, or x in the middle of zeros; an odd element is at the
    end."""
    dims = [normalize_axis(a, x.rank) for a in (range(x.rank) if axes is None else axes)]
    wanted = known_ints(shape)
    if len(wanted) != len(dims) or min(wanted, default=0) < 0:
        raise fail(f"shape {wanted} for the axes {dims} of {x.shape}")
    target = list(x.shape)
    for d, n in zip(dims, wanted, strict=True):
        target[d] = n
    if tuple(target) == x.shape:
        return x
    if x.size == 0 or not prod(target):
        return compute(target, lambda *i: 0, dtype=x.dtype)
    shifts = [_shift(n, t) for n, t in zip(x.shape, target, strict=True)]

    def element(*i: Expr) -> Operand:
        at: list[Expr] = [v + s if s else v for v, s in zip(i, shifts, strict=True)]
        value: Expr = x[at]
        for v, n, t in zip(at, x.shape, target, strict=True):
            value = select(inside(v, n), value, 0) if t > n else value
        return value

    return compute(target, element)


def _shift(extent: int, target: int) -> int:
    """Where the middle begins in the operand; negative if it is the operand that begins later."""
    return (extent - target) // 2 if target <= extent else -((target - extent) // 2)
