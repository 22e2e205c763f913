"""Exact sums of products of bytes in the form that tensor cores compute: both factors lie along the
sum, as they are stored, signed or not.

Where an image ends, bytes of zero are multiplied instead of its zero point. What that leaves out
depends on the taps of a window that lie inside, so on few kinds of places:

    sum (a - za) * b = sum a * b - za * sum b, over the taps inside
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from tilewright.dtypes import DType
from tilewright.fusion.bytes import (
    MAX_DEPTH,
    Bytes,
    Matmul,
    bytes_of,
    constant_weights,
    corrected,
    find_matmul,
    padded_lines,
    places,
    restated,
    sums_along,
    wide,
    window_sums,
)
from tilewright.fusion.contraction import find_contraction
from tilewright.fusion.convolution import Convolution, find_convolution
from tilewright.fusion.inline import topological
from tilewright.fusion.renew import renewed
from tilewright.fusion.weights import PackedWeights, aligned_zeros
from tilewright.fusion.whole import WholeNumbers
from tilewright.loops.ir import Apply, Expr, Load, Var, index_const
from tilewright.loops.microtile import QUAD
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import maximum, minimum, select
from tilewright.ops.tensor import Compute, Constant, Tensor, compute, constant
from tilewright.ops.windows import Window, guard

VECTOR = 16  # bytes of the widest copy
Array = np.ndarray


def sums_of_bytes(outputs: Sequence[Tensor], kept: PackedWeights) -> list[Tensor]:
    """Equal outputs, in which sums of products of bytes are int32 numbers."""
    order = topological(outputs)
    forms, whole, done = _Forms(kept), WholeNumbers(), dict[str, Tensor]()
    images = {image.name for t in order if (image := _image_of(t)) is not None}
    for t in order:
        current = whole.read(renewed(t, done))
        if isinstance(current, Compute) and current.name in images and current.reduction is None:
            current = replace(current, channels_last=True)
        done[t.name] = whole.taken(current, forms.made(current))
    return [done[t.name] for t in outputs]


def _image_of(t: Tensor) -> Tensor | None:
    """The bytes whose channels a convolution sums up."""
    c = find_convolution(t) if isinstance(t, Compute) and t.exact else None
    image = bytes_of(c.image) if c is not None and c.groups == 1 else None
    return image.x if image else None


def filled(extent: int) -> int:
    """The extent filled up so that neighbours are copied together: whole quads of few, whole
    vectors of more."""
    if extent % QUAD == 0:
        return extent
    unit = QUAD if extent < VECTOR else VECTOR
    return -(-extent // unit) * unit


@dataclass(frozen=True)
class _Factor:
    """Bytes `x` that are multiplied, [..., depth] if they are turned, and whether their zero
    points are subtracted already."""

    x: Tensor
    settled: bool

    def elements(self) -> Array:
        assert isinstance(self.x, Constant)
        return self.x.value


@dataclass
class _Forms:
    """The forms of the sums of one program."""

    kept: PackedWeights
    images: dict[str, Tensor] = field(default_factory=dict)  # with their channels last

    def made(self, t: Tensor) -> Compute | None:
        """t as int32 numbers, computed from bytes; None if it is no exact sum of such products."""
        if not isinstance(t, Compute) or not t.exact or t.reduction is None:
            return None
        if not t.dtype.is_float or t.reduction.op is not ScalarOp.ADD:
            return None
        c = find_convolution(t)
        made = self.convolution(c) if c else self.product(t)
        return made and replace(made, op=t.op, node=t.node)

    # -- matrices

    def product(self, t: Compute) -> Compute | None:
        m = find_matmul(t)
        return (self.matmul(t, m, True) or self.matmul(t, m, False)) if m else None

    def matmul(self, t: Compute, m: Matmul, turned: bool) -> Compute | None:
        """In lines; or as the matrices lie, where the sum is none that tiles compute."""
        zeros = m.zero_points(m.a.x.dtype, m.b.x.dtype)
        if zeros is None:
            return None
        deep = filled(m.depth) if turned else m.depth
        b = self.right(m.b, deep, turned)
        a = _filled_last(m.a.x, deep)
        *outer, _, column = m.bt
        bt = (*outer, column, Var(m.k)) if turned else m.bt
        product = Apply(ScalarOp.MUL, (wide(Load(a, m.at)), wide(Load(b.x, bt))))
        raw = replace(restated(t, product, ((m.k, deep),)), lines=turned)
        if turned and find_contraction(raw) is None:
            return None
        za, zb = zeros[0], None if b.settled else zeros[1]
        summed = -1 if turned else -2
        of_columns = None if za is None else Load(self.sums(b, summed), (*outer, column))
        of_rows = None if zb is None else Load(sums_along(m.a.x, (-1,)), m.at[:-1])
        here = tuple(map(Var, t.axes))
        return restated(t, corrected(Load(raw, here), za, of_columns, zb, of_rows, m.depth))

    def right(self, b: Bytes, deep: int, turned: bool) -> _Factor:
        """The second factor, [..., column, depth] if it is `turned`."""
        if isinstance(b.x, Constant):
            return self.settled(b, lambda v: _turned(v, deep) if turned else v, f"{turned} {deep}")
        if not turned:
            return _Factor(b.x, False)
        *outer, depth, columns = b.x.shape

        def element(*i: Expr) -> Expr:
            value = b.x[(*i[:-2], i[-1], i[-2])]
            return value if deep == depth else select(i[-1] < depth, value, 0)

        return _Factor(replace(compute((*outer, columns, deep), element), op="Transpose"), False)

    def settled(self, b: Bytes, laid: object, how: str) -> _Factor:
        """Constants less their zero points as signed bytes, if they fit; as they are otherwise."""
        x = b.x
        assert isinstance(x, Constant) and callable(laid)
        key = compute(x.shape, lambda *i: b.difference(i))
        fits = self.kept.derived(key, "fit", lambda: np.array(b.differences() is not None))

        def make() -> Array:
            found = b.differences() if fits else None
            return laid(x.value if found is None else found)  # type: ignore[no-any-return]

        value = self.kept.derived(key, f"lines of bytes {how}", make)
        return _Factor(constant(value, DType.I8 if fits else x.dtype), bool(fits))

    def sums(self, b: _Factor, axis: int) -> Tensor:
        """The sums of bytes along an axis."""
        if isinstance(b.x, Constant):
            return constant(b.elements().sum(axis, dtype=np.int32), DType.I32)
        return sums_along(b.x, (axis,))

    # -- images

    def convolution(self, c: Convolution) -> Compute | None:
        image, weights = bytes_of(c.image), constant_weights(c)
        if image is None or weights is None or c.groups > 1 or not c.result.size:
            return None
        if c.taps * c.inputs > MAX_DEPTH:
            return None
        deep = filled(c.inputs)
        w = self.settled(weights, lambda v: _channels_last(v, deep), f"of windows {deep}")
        zero = weights.zero_at([index_const(0)] * weights.x.rank, w.x.dtype)
        if w.settled or zero is None:
            return self.sums_inside(c, image, w.x)
        return self.padded_sums(c, image, weights, w.x)

    def sums_inside(self, c: Convolution, image: Bytes, w: Tensor) -> Compute:
        """The sums over what of the windows is inside, for weights without zero points."""
        assert isinstance(w, Constant)
        lines, rank = self.image(image.x, w.shape[-1]), len(c.dims)

        def element(n: Expr, o: Expr, *axes: Expr) -> Expr:
            out, k, i = axes[:rank], axes[rank:-1], axes[-1]
            at = [d.at(a, b) for d, a, b in zip(c.dims, out, k, strict=True)]
            condition, pixel = guard(c.dims, at), wide(lines[(n, *at, i)])
            pixel = pixel if condition is None else select(condition, pixel, 0)
            return pixel * wide(w[(o, *k, i)])

        raw = _sum(c, element, w)
        kinds = [_Kinds.of(d) for d in c.dims]
        inside = constant(_sums_inside(w.value, kinds), DType.I32)

        def less_zero_points(n: Expr, o: Expr, *out: Expr) -> Expr:
            at = [k.at(a) for k, a in zip(kinds, out, strict=True)]
            za = image.zero_at((n, o, *out), image.x.dtype)
            return corrected(raw[(n, o, *out)], za, inside[(o, *at)], None, None, 0)

        return compute(c.result.shape, less_zero_points, channels_last=True)

    def padded_sums(self, c: Convolution, image: Bytes, weights: Bytes, w: Tensor) -> Compute:
        """The sums over an image with its zero points around it."""
        assert isinstance(w, Constant)
        rank, taps = len(c.dims), c.taps * c.inputs
        lines = padded_lines(c, image, image.x.dtype, w.shape[-1])
        # Only its own channels count: the others are zeros.
        pixels = window_sums(c, lines)
        of_weights = constant(w.value.sum(tuple(range(1, w.rank)), dtype=np.int32), DType.I32)

        def element(n: Expr, o: Expr, *axes: Expr) -> Expr:
            out, k, i = axes[:rank], axes[rank:-1], axes[-1]
            return wide(lines[(n, *places(c, out, k), i)]) * wide(w[(o, *k, i)])

        raw = _sum(c, element, w)

        def less_zero_points(n: Expr, o: Expr, *out: Expr) -> Expr:
            za = image.zero_at((n, o, *out), image.x.dtype)
            zb = weights.zero_at((o, *[index_const(0)] * (rank + 1)), w.dtype)
            of_pixels = pixels[(n, *out)]
            return corrected(raw[(n, o, *out)], za, of_weights[o], zb, of_pixels, taps)

        return compute(c.result.shape, less_zero_points, channels_last=True)

    def image(self, x: Tensor, channels: int) -> Tensor:
        """An image as [batch, spatial..., channels], with zeros after its own channels."""
        if x.name not in self.images:
            batch, own, *spatial = x.shape

            def element(n: Expr, *i: Expr) -> Expr:
                value = x[(n, i[-1], *i[:-1])]
                return value if channels == own else select(i[-1] < own, value, 0)

            made = compute((batch, *spatial, channels), element)
            self.images[x.name] = replace(made, op="Transpose")
        return self.images[x.name]


def _sum(c: Convolution, element: object, w: Constant) -> Compute:
    over, shape = w.shape[1:], c.result.shape
    raw = compute(shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)  # type: ignore[arg-type]
    return replace(raw, exact=True, lines=True, op=c.result.op, node=c.result.node)


def _filled_last(x: Tensor, deep: int) -> Tensor:
    """With zeros after the last dimension, up to this extent."""
    own = x.shape[-1]
    if deep == own:
        return x
    made = compute((*x.shape[:-1], deep), lambda *i: select(i[-1] < own, x[i], 0))
    return replace(made, op="Pad")


def _turned(value: Array, deep: int) -> Array:
    """[..., depth, column] as [..., column, depth], filled with zeros."""
    *outer, depth, columns = value.shape
    out = aligned_zeros((*outer, columns, deep), value.dtype)
    out[..., :depth] = np.swapaxes(value, -1, -2)
    return out


def _channels_last(value: Array, channels: int) -> Array:
    """[output, channel, window...] as [output, window..., channel], filled with zeros."""
    outputs, own, *window = value.shape
    out = aligned_zeros((outputs, *window, channels), value.dtype)
    out[..., :own] = np.moveaxis(value, 1, -1)
    return out


@dataclass(frozen=True)
class _Kinds:
    """The kinds of places along one dimension, by the taps that lie inside: those before `first`
    and those after `last` are each their own, all others have all taps."""

    first: int
    last: int
    taps: Array  # [kind, tap]: whether it is inside

    @staticmethod
    def of(d: Window) -> _Kinds:
        at = np.arange(d.out)[:, None] * d.stride + np.arange(d.kernel) * d.dilation - d.before
        taps = (at >= 0) & (at < d.extent)
        whole = np.flatnonzero(taps.all(1))
        first, last = (int(whole[0]), int(whole[-1])) if whole.size else (d.out - 1, d.out - 1)
        return _Kinds(first, last, np.concatenate([taps[: first + 1], taps[last + 1 :]]))

    def at(self, out: Expr) -> Expr:
        """The kind of a place."""
        if len(self.taps) == 1:
            return index_const(0)
        return minimum(out, self.first) + maximum(out - self.last, 0)


def _sums_inside(w: Array, kinds: Sequence[_Kinds]) -> Array:
    """[output, kind...]: the sums of the weights of the taps that are inside."""
    sums = w.sum(-1, dtype=np.int32)

    def along(sums: Array, k: _Kinds) -> Array:
        """The first dimension of a window, as the last one of kinds."""
        found: Array = np.tensordot(sums, k.taps.astype(np.int32), (1, 1))
        return found

    return reduce(along, kinds, sums)
