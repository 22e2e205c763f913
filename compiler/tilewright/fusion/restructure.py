"""Convolutions in the form that register tiles compute best.

Each strategy takes a convolution to an equal tensor expression, or declines. What they leave alone
is computed over its window directly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.dtypes import DType
from tilewright.fusion.attention import find_attention, readers_of
from tilewright.fusion.attention_loops import by_vectors
from tilewright.fusion.bytes import products_of_bytes
from tilewright.fusion.convolution import Convolution, find_convolution
from tilewright.fusion.decide import Pick, Point, by_cost_model
from tilewright.fusion.inline import topological
from tilewright.fusion.phases import in_place
from tilewright.fusion.renew import renewed
from tilewright.fusion.splits import Split, Splits
from tilewright.fusion.weights import PackedWeights
from tilewright.fusion.whole import WholeNumbers
from tilewright.fusion.winograd import (
    direct_cost,
    fits,
    in_run,
    panel_width,
    winograd,
    winograd_cost,
)
from tilewright.fusion.winograd_weights import POINTS, TAPS
from tilewright.loops.ir import Expr, Load, Var, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum, select
from tilewright.ops.tensor import (
    Compute,
    Constant,
    Tensor,
    compute,
    constant,
    sources,
)

FLOAT_BITS = 32
MIN_REUSE = 32  # products per element of the image for which a copy of it pays
DIRECT = 0  # stands for the window itself, beside the sizes of Winograd's tiles
FEW_OUTPUTS = 4  # fewer channels of results than this do not make the columns of a tile


MOST_COPIES = 4  # of an image, one for every channel of a group
SMALL_GROUP = 4  # groups that share a vector before copies of the image pay


@dataclass(frozen=True)
class Means:
    """What strategies go by: vector length by bits of an element, where constants are kept, what
    decides between ways, and whether the machine multiplies bytes."""

    lanes: Mapping[int, int]
    weights: PackedWeights
    pick: Pick = by_cost_model
    bytes: bool = False

    def lanes_of(self, c: Convolution) -> int:
        return self.lanes[c.result.dtype.bits]

    def stored(self, t: Compute) -> Tensor:
        """A map of constants as a constant itself; anything else as it is."""
        if not all(isinstance(s, Constant) for s in sources(t)):
            return t
        return constant(self.weights.get(t), t.dtype)


Strategy = Callable[[Convolution, Means], Tensor | None]


def restructure(outputs: Sequence[Tensor], means: Means) -> list[Tensor]:
    """Equal outputs, with convolutions and exact sums in the form that suits them."""
    done: dict[str, Tensor] = {}
    splits = Splits()
    order = topological(outputs)
    readers = readers_of(order)
    names = frozenset(t.name for t in outputs)
    whole = WholeNumbers()
    form = by_vectors(means.lanes[FLOAT_BITS])
    for t in order:
        current = whole.read(renewed(t, done))
        if t.name not in names:
            current = splits.follow(current)
            alone = all(readers[s.name] == {t.name} and s.name not in names for s in sources(t))
            current = (alone and in_place(current, means.lanes)) or current
        if means.bytes:
            current = whole.taken(current, products_of_bytes(current, means.weights))
        c = find_convolution(current)
        attention = find_attention(current, readers, names, form)
        done[t.name] = attention or (c and _choose(c, means)) or current
        splits.note(done[t.name])
    return [done[t.name] for t in outputs]


def _choose(c: Convolution, means: Means) -> Tensor | None:
    for strategy in STRATEGIES:
        made = strategy(c, means)
        if made is not None:
            return _named(made, c.result)
    return None


def _named(made: Tensor, old: Compute) -> Tensor:
    """The new form under the old name, where that is a Compute."""
    if not isinstance(made, Compute):
        return made
    return replace(made, op=old.op, node=old.node)


def split_groups(c: Convolution, means: Means) -> Tensor | None:
    """Groups of several channels each, as an axis of their own, so that every group is a
    contraction."""
    share, rank = c.outputs // c.groups, len(c.dims)
    if c.groups == 1 or share == 1 or (c.inputs == 1 and share < means.lanes_of(c)):
        return None
    split = Split((1, share, *[1] * rank))

    def element(n: Expr, g: Expr, *axes: Expr) -> Expr:
        out, o, i, k = axes[:rank], axes[rank], axes[rank + 1], axes[rank + 2 :]
        positions = [d.at(a, b) for d, a, b in zip(c.dims, out, k, strict=True)]
        value = c.pixel_or_zero(n, g * c.inputs + i, positions)
        return value * c.weight(g * share + o, i, *k)

    over = [c.inputs, *(d.kernel for d in c.dims)]
    grouped = compute(split.shape(c.result.shape), element, reduce=ScalarOp.ADD, over=over)
    return split.joined(replace(grouped, op=c.result.op, node=c.result.node))


def spread_groups(c: Convolution, means: Means) -> Tensor | None:
    """Small groups: a padded copy in which every channel of results finds each of its inputs at its
    own place, so that neighbouring groups fill a vector."""
    share, rank, lanes = c.outputs // c.groups, len(c.dims), means.lanes_of(c)
    if c.groups == 1 or c.inputs > MOST_COPIES or c.inputs == share == 1:
        return None
    if (share * SMALL_GROUP > lanes and c.inputs > 1) or share >= lanes or c.outputs < lanes:
        return None
    extents = [max((d.out - 1) * d.stride + d.reach, 1) for d in c.dims]

    def spread(n: Expr, *axes: Expr) -> Expr:
        positions = [p - d.before for p, d in zip(axes, c.dims, strict=False)]
        i, o = axes[rank:]
        return c.pixel_or_zero(n, o // share * c.inputs + i, positions)

    image = compute((c.batch, *extents, c.inputs, c.outputs), spread)

    def element(n: Expr, o: Expr, *axes: Expr) -> Expr:
        out, i, k = axes[:rank], axes[rank], axes[rank + 1 :]
        places = [a * d.stride + b * d.dilation for d, a, b in zip(c.dims, out, k, strict=True)]
        return image[(n, *places, i, o)] * c.weight(o, i, *k)

    over = [c.inputs, *(d.kernel for d in c.dims)]
    return compute(c.result.shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)


def gather_few_outputs(c: Convolution, means: Means) -> Tensor | None:
    """Few channels of results: the sum over vectors of the image first, over a vector last.

    The pixels of one line and their channels are one run of memory, which the window's line is a
    part of; the last vector of a run overlaps the one before it, with weights of zero.
    """
    line, lanes = c.dims[-1], means.lanes_of(c)
    run = line.kernel * c.inputs
    if c.groups > 1 or c.outputs >= FEW_OUTPUTS or run < lanes or line.dilation > 1:
        return None
    if c.taps * c.inputs < MIN_REUSE:
        return None
    image, rank = _lines(c), len(c.dims)
    blocks = -(-run // lanes)

    def place(block: Expr, lane: Expr) -> tuple[Expr, Expr]:
        """Where in the run a lane is, and whether it is the first to be there."""
        if run % lanes == 0:
            return block * lanes + lane, block >= 0
        at = minimum(block * lanes, run - lanes) + lane
        return at, at >= block * lanes

    def partial(n: Expr, o: Expr, *axes: Expr) -> Expr:
        out, lane, k, block = axes[:rank], axes[rank], axes[rank + 1 : -1], axes[-1]
        at, _ = place(block, lane)
        lines = [
            a * d.stride + b * d.dilation for d, a, b in zip(c.dims[:-1], out[:-1], k, strict=True)
        ]
        run = out[-1] * (line.stride * c.inputs) + at
        return in_run(image, n, *lines, run) * weights[(o, *k, block, lane)]

    def weight(o: Expr, *axes: Expr) -> Expr:
        k, (block, lane) = axes[:-2], axes[-2:]
        at, first = place(block, lane)
        value = c.weight(o, at % c.inputs, *k, at // c.inputs)
        return value if run % lanes == 0 else select(first, value, 0)

    outer = [d.kernel for d in c.dims[:-1]]
    weights = means.stored(compute((c.outputs, *outer, blocks, lanes), weight))
    shape = (c.batch, c.outputs, *(d.out for d in c.dims))
    sums = compute((*shape, lanes), partial, reduce=ScalarOp.ADD, over=[*outer, blocks])
    sums = replace(sums, op=c.result.op, node=c.result.node)
    return compute(
        shape, lambda *axes: sums[axes], reduce=ScalarOp.ADD, over=[lanes], channels_last=True
    )


def _lines(c: Convolution, extents: Sequence[int] = ()) -> Tensor:
    """The padded image as [batch, spatial..., channels], of these extents or as large as the
    windows reach."""
    extents = extents or [max((d.out - 1) * d.stride + d.reach, 1) for d in c.dims]

    reach = [replace(d, out=n - d.kernel + 1) for d, n in zip(c.dims, extents, strict=True)]

    def element(n: Expr, *axes: Expr) -> Expr:
        positions = [p - d.before for p, d in zip(axes[:-1], c.dims, strict=True)]
        return c.pixel_or_zero(n, axes[-1], positions, reach)

    return compute((c.batch, *extents, c.inputs), element)


def pad_planes(c: Convolution, means: Means) -> Tensor | None:
    """Few channels that lie one after the other: a padded copy in that order, in which the line of
    a window is one run; no copy where nothing is padded."""
    if not _is_narrow(c, means) or not lies_planar(c.image):
        return None
    rank, padded = len(c.dims), any(d.leaves for d in c.dims)
    image = _planes(c) if padded else c.image

    def element(n: Expr, o: Expr, *axes: Expr) -> Expr:
        out, i, k = axes[:rank], axes[rank], axes[rank + 1 :]
        places = [a * d.stride + b * d.dilation for d, a, b in zip(c.dims, out, k, strict=True)]
        pixel = image[(n, i, *places)] if padded else c.pixel(n, i, *places)
        return pixel * c.weight(o, i, *k)

    over = [c.inputs, *(d.kernel for d in c.dims)]
    return compute(c.result.shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)


def _planes(c: Convolution) -> Tensor:
    """The padded image as [batch, channels, spatial...]."""
    extents = [max((d.out - 1) * d.stride + d.reach, 1) for d in c.dims]

    def element(n: Expr, i: Expr, *axes: Expr) -> Expr:
        positions = [p - d.before for p, d in zip(axes, c.dims, strict=True)]
        return c.pixel_or_zero(n, i, positions)

    return compute((c.batch, c.inputs, *extents), element)


def lies_planar(t: Tensor) -> bool:
    """Whether the last dimension is contiguous, as in what comes from outside and in maps of it."""
    if not isinstance(t, Compute):
        return t.strides is None
    if t.reduction is not None or t.channels_last or t.strides is not None:
        return False
    loads = [n for n in walk(t.body) if isinstance(n, Load) and len(n.index) == t.rank]
    here = tuple(Var(a) for a in t.axes)
    return bool(loads) and all(
        n.index == here and isinstance(n.buffer, Tensor) and lies_planar(n.buffer) for n in loads
    )


def _is_narrow(c: Convolution, means: Means) -> bool:
    """Whether the channels of the image alone are too few for the inner loop of a tile."""
    if c.groups > 1 or c.inputs >= means.lanes_of(c) or c.dims[-1].kernel == 1:
        return False
    return c.outputs * c.taps >= MIN_REUSE and c.outputs >= FEW_OUTPUTS


def widen_lines(c: Convolution, means: Means) -> Tensor | None:
    """Few channels of the image: a padded copy, in which a line of the window is one run."""
    line = c.dims[-1]
    if not _is_narrow(c, means) or line.dilation > 1:
        return None
    image, rank = _lines(c), len(c.dims)

    def element(n: Expr, o: Expr, *axes: Expr) -> Expr:
        out, k, at = axes[:rank], axes[rank:-1], axes[-1]
        lines = [
            a * d.stride + b * d.dilation for d, a, b in zip(c.dims[:-1], out[:-1], k, strict=True)
        ]
        pixel = in_run(image, n, *lines, out[-1] * (line.stride * c.inputs) + at)
        return pixel * c.weight(o, at % c.inputs, *k, at // c.inputs)

    over = [*(d.kernel for d in c.dims[:-1]), line.kernel * c.inputs]
    return compute(c.result.shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)


def filter_minimally(c: Convolution, means: Means) -> Tensor | None:
    """Winograd's algorithm, where its sums and its larger weights cost less than what it saves."""
    lanes = means.lanes_of(c)
    if not _is_plain_3x3(c) or c.inputs < lanes or c.outputs < lanes:
        return None
    width = panel_width(c, lanes)
    costs = {m: winograd_cost(c, m, width) for m in POINTS if fits(c, m)}
    costs[DIRECT] = direct_cost(c, width)
    cheapest = min(costs, key=lambda m: (costs[m], m))
    best = means.pick(Point("winograd", lambda: _facts(c), (*costs,), cheapest, costs[DIRECT]))
    if best == DIRECT:
        return None
    tall, wide = (-(-d.out // best) * best + TAPS - 1 for d in c.dims)
    return winograd(c, _lines(c, (tall, wide)), best, lanes, means.weights)


def _facts(c: Convolution) -> Hashable:
    """What the cost of a convolution depends on."""
    return c.batch, c.inputs, c.outputs, c.groups, c.dims


def _is_plain_3x3(c: Convolution) -> bool:
    plain = all(d.kernel == TAPS and d.stride == d.dilation == 1 for d in c.dims)
    if not plain or len(c.dims) != 2 or c.groups > 1 or c.exact:
        return False
    constant_weights = all(isinstance(s, Constant) for s in c.weight_sources)
    return constant_weights and c.result.dtype is DType.F32


STRATEGIES: tuple[Strategy, ...] = (
    spread_groups,
    split_groups,
    gather_few_outputs,
    pad_planes,
    widen_lines,
    filter_minimally,
)
