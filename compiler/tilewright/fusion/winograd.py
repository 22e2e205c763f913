"""Convolutions 3x3 by Winograd's minimal filtering, F(m x m, 3 x 3): fewer multiplications for
sums.

In one dimension m results need m + 2 products: y = A' [(G g) * (B' d)] (S. Winograd, Arithmetic
Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
Networks, 2016). The points +-1/sqrt 2, +-sqrt 2 lose two bits less than the usual +-1, +-2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

from tilewright.dtypes import DType
from tilewright.fusion.convolution import Convolution
from tilewright.fusion.weights import PackedWeights
from tilewright.fusion.winograd_weights import (
    TAPS,
    Original,
    matrices,
    transformed,
)
from tilewright.loops.ir import Expr, Load, Var
from tilewright.loops.locate import MAX_SCRATCH_BYTES
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Compute, Constant, Elements, Tensor, compute, constant, sources

ROWS = 14  # tiles multiplied at once
MAX_BLOCK_BYTES = MAX_SCRATCH_BYTES * 3 // 4  # transformed tiles of any block
SCRATCH_BYTES = 600 << 10  # transformed tiles of one block: they should stay in the second level


@dataclass(frozen=True)
class Winograd:
    """How the tiles of a convolution lie: `rows` x `columns` of them, m x m results each."""

    m: int
    rows: int
    columns: int
    inputs: int
    outputs: int
    width: int  # channels of results in a panel of weights
    lanes: int  # elements of a vector
    image: Tensor  # [batch, lines, pixels, inputs], padded
    weights: Constant  # [panel, alpha * alpha, inputs, width]
    b: Constant
    a: Constant

    @property
    def alpha(self) -> int:
        return self.m + TAPS - 1

    @property
    def tiles(self) -> int:
        return self.rows * self.columns

    @property
    def panels(self) -> int:
        return self.weights.shape[0]


@dataclass(frozen=True, eq=False)
class WinogradCompute(Compute):
    """A convolution whose loops are those of `form`; the body says the same element by element."""

    form: Winograd | None = field(default=None)

    @property
    def placed(self) -> Winograd:
        """The form, with the image as the body reads it now."""
        assert self.form is not None
        name = self.form.image.name
        return replace(self.form, image=next(s for s in sources(self) if s.name == name))


def in_run(image: Tensor, *index: Expr) -> Load:
    """An element by its place in a line of pixels and channels."""
    *outer, run = index
    return image[(*outer, run // image.shape[-1], run % image.shape[-1])]


def winograd(
    c: Convolution, image: Tensor, m: int, lanes: int, kept: PackedWeights
) -> WinogradCompute:
    """The convolution over an image padded to whole tiles; weights and image as `Winograd` has
    them."""
    h, w = (-(-d.out // m) for d in c.dims)
    tables, width = matrices(m), panel_width(c, lanes)
    b, a = constant(tables.b, DType.F32), constant(tables.a, DType.F32)
    taps = compute((c.outputs, c.inputs, TAPS, TAPS), c.weight)
    how = f"F({m}) {width}"
    spread = kept.derived(taps, how, lambda: transformed(evaluate(taps), tables, width))
    if (source := _source(taps)) is not None:
        kept.instead_of(source, lambda: Original.of(source.array, spread, tables))
    weights = constant(spread, DType.F32)
    form = Winograd(m, h, w, c.inputs, c.outputs, width, lanes, image, weights, b, a)
    alpha = form.alpha

    def element(n: Expr, o: Expr, y: Expr, x: Expr, *r: Expr) -> Expr:
        p, q, i, j, ic = r
        line, run = y // m * m + i, (x // m * m + j) * c.inputs + ic
        pixel = b[p, i] * b[q, j] * in_run(image, n, line, run)
        weight = weights[o // width, p * alpha + q, ic, o % width]
        return a[y % m, p] * a[x % m, q] * (pixel * weight)

    over = [alpha] * 4 + [c.inputs]
    made = compute(c.result.shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)
    fields = {n: getattr(made, n) for n in made.__dataclass_fields__}
    return WinogradCompute(**fields, form=form)


def _source(taps: Compute) -> Elements | None:
    """The elements of a constant that are the taps as they are."""
    match taps.body:
        case Load(buffer=Constant(strides=None) as c, index=index):
            here = tuple(map(Var, taps.axes))
            return c.elements if index == here and c.shape == taps.shape else None
    return None


TRANSFORM = 1.5  # of the small products' cost over that of large ones
FETCH = 2.0  # multiplications of a vector's lane in the time of a byte from the third level
COPY = 4.0  # the same for a byte of the image that is copied


def panel_width(c: Convolution, lanes: int) -> int:
    """Channels of results that are computed side by side."""
    return 2 * lanes if c.outputs > lanes else lanes


def fits(c: Convolution, m: int) -> bool:
    """Whether the transformed tiles of the smallest block fit a task's scratch."""
    alpha = m + TAPS - 1
    tiles = prod(-(-d.out // m) for d in c.dims)
    return 4 * alpha * alpha * min(ROWS, tiles) * c.inputs <= MAX_BLOCK_BYTES


def direct_cost(c: Convolution, width: int) -> float:
    """Rough cost of the window computed directly, in multiplications of a vector's lane."""
    channels = -(-c.outputs // width) * width
    pixels = c.batch * prod(d.out for d in c.dims)
    return pixels * c.taps * c.inputs * channels + 4 * FETCH * c.taps * c.inputs * channels


def winograd_cost(c: Convolution, m: int, width: int) -> float:
    """The same of F(m x m, 3 x 3): products, transforms, weights for every block, padded copy."""
    alpha = m + TAPS - 1
    channels = -(-c.outputs // width) * width
    tiles = prod(-(-d.out // m) for d in c.dims)
    fitting = max(ROWS, SCRATCH_BYTES // (4 * alpha * alpha * c.inputs))
    blocks = -(-tiles // fitting)
    products = tiles * alpha * alpha * c.inputs * channels
    there = 2 * tiles * alpha**3 * c.inputs
    back = tiles * channels * (alpha * alpha * m + alpha * m * m)
    weights = 4 * FETCH * blocks * alpha * alpha * c.inputs * channels
    copied = 8 * COPY * c.inputs * prod(d.extent for d in c.dims)
    return c.batch * (products + TRANSFORM * (there + back) + weights + copied)
