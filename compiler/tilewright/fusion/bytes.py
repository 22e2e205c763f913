"""Exact sums of products of bytes, in the form that the processor's byte instructions compute.

Those multiply unsigned bytes `a` by signed bytes `b` and add four products at a time to an int32.
With `a` and `b` the bytes as they are stored, moved by 128 where their sign is the other one,

    sum (a - za) * (b - zb) = sum a * b - za * sum b - zb * (sum a - K * za)

The sums of `b` are constants where the weights are; those of `a` count only where `zb` is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tilewright.dtypes import DType
from tilewright.fusion.contraction import find_contraction
from tilewright.fusion.convolution import Convolution, find_convolution
from tilewright.fusion.weights import PackedWeights, aligned_zeros
from tilewright.loops.ir import (
    Apply,
    Cast,
    Const,
    Expr,
    Load,
    Var,
    dtype_of,
    index_const,
    substitute,
    variables,
)
from tilewright.loops.microtile import QUAD
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import reduce, select
from tilewright.ops.tensor import Compute, Constant, Tensor, compute, constant
from tilewright.ops.windows import Window, guard

MIDDLE = 128  # between the unsigned and the signed reading of a byte
WRITTEN_OUT = 8  # terms of a sum
MAX_DEPTH = 1 << 15  # products of which no sum leaves 32 bits


@dataclass(frozen=True)
class Bytes:
    """Bytes less a zero point: an expression over `axes`, or None."""

    x: Tensor
    axes: tuple[str, ...]
    zero: Expr | None

    def zero_at(self, index: Sequence[Expr], stored: DType) -> Expr | None:
        """The zero point of an element whose byte is stored as `stored`, as an int32; None if it
        is surely zero."""
        shift = _shift(self.x.dtype, stored)
        match self.zero:
            case None:
                known: int | None = 0
            case Load(buffer=Constant(value=v)) if v.size and (v == v.flat[0]).all():
                known = int(v.flat[0])
            case _:
                known = None
        if known is not None:
            return Const(known + shift, DType.I32) if known + shift else None
        assert self.zero is not None
        env: dict[str, Expr] = dict(zip(self.axes, index, strict=True))
        moved = Cast(DType.I32, substitute(self.zero, env))  # type: ignore[arg-type]
        return moved + shift if shift else moved

    def difference(self, index: Sequence[Expr]) -> Expr:
        """An element less its zero point, in bytes that may not hold it."""
        if self.zero is None:
            return self.x[tuple(index)]
        env: dict[str, Expr] = dict(zip(self.axes, index, strict=True))
        return self.x[tuple(index)] - substitute(self.zero, env)  # type: ignore[operator]

    def differences(self) -> np.ndarray | None:
        """The bytes less their zero points, if they are constants and fit signed bytes."""
        if not isinstance(self.x, Constant):
            return None
        value = self.x.value.astype(np.int16)
        match self.zero:
            case None:
                pass
            case Load(buffer=Constant(value=zero), index=index):
                value = value - self._spread(zero.astype(np.int16), index)
            case _:
                return None
        limits = np.iinfo(np.int8)
        fits = value.size == 0 or (value.min() >= limits.min and value.max() <= limits.max)
        return value.astype(np.int8) if fits else None

    def _spread(self, zero: np.ndarray, index: Sequence[Expr]) -> np.ndarray:
        """Zero points in as many dimensions as the bytes have."""
        if zero.size == 1:
            return zero.reshape((1,) * len(self.axes))
        extents = {
            self.axes.index(i.name): n
            for i, n in zip(index, zero.shape, strict=True)
            if isinstance(i, Var)
        }
        order = np.argsort([self.axes.index(i.name) for i in index if isinstance(i, Var)])
        spread = zero.reshape(list(extents.values())).transpose(order)
        return spread.reshape([extents.get(k, 1) for k in range(len(self.axes))])


def _shift(given: DType, stored: DType) -> int:
    if given is stored:
        return 0
    return MIDDLE if stored is DType.U8 else -MIDDLE


def stored_as(e: Expr, stored: DType) -> Expr:
    """A byte moved to the other sign, if it does not have it."""
    given = dtype_of(e)
    return e if given is stored else Cast(stored, Cast(DType.I32, e) + _shift(given, stored))


def bytes_of(t: object) -> Bytes | None:
    """What t widens, if it is bytes less a zero point in a float type."""
    if not isinstance(t, Compute) or t.reduction is not None or not t.dtype.is_float:
        return None
    zero: Expr | None = None
    match t.body:
        case Cast(arg=Load() as x):
            pass
        case Apply(op=ScalarOp.SUB, args=(Cast(arg=Load() as x), Cast(arg=Load() as zero))):
            pass
        case _:
            return None
    here = tuple(Var(a) for a in t.axes)
    if x.index != here or x.buffer.dtype not in (DType.U8, DType.I8):
        return None
    return Bytes(x.buffer, t.axes, zero) if isinstance(x.buffer, Tensor) else None


@dataclass(frozen=True)
class Signed:
    """Signed bytes `b`, their sums over what is summed, and what else their zero points take."""

    b: Tensor
    sums: Tensor
    settled: bool  # whether zero points are subtracted already

    @staticmethod
    def of(w: Bytes, depth: int, summed: Sequence[int], kept: PackedWeights) -> Signed:
        """Of a tensor in which dimension `depth` is filled up to whole quads."""
        if not isinstance(w.x, Constant):
            b = _filled(w, depth)
            return Signed(b, sums_along(b, summed), False)
        key = compute(w.x.shape, lambda *i: w.difference(i))
        fits = kept.derived(key, "bytes fit", lambda: np.array(w.differences() is not None))
        settled = bool(fits)

        def make() -> np.ndarray:
            found = w.differences() if settled else None
            return _fill(_as_signed(w.x) if found is None else found, depth)  # type: ignore[arg-type]

        value = kept.derived(key, f"signed bytes {depth}", make)
        how = f"sums of signed bytes {summed}"
        sums = kept.derived(key, how, lambda: value.sum(tuple(summed), dtype=np.int32))
        return Signed(constant(value, DType.I8), constant(sums, DType.I32), settled)


def _as_signed(c: Constant) -> np.ndarray:
    wide = c.value.astype(np.int16) + _shift(c.dtype, DType.I8)
    return wide.astype(np.int8)


def _fill(value: np.ndarray, depth: int) -> np.ndarray:
    shape = list(value.shape)
    shape[depth] = whole(shape[depth])
    out = aligned_zeros(tuple(shape), value.dtype)
    place = [slice(n) for n in value.shape]
    out[tuple(place)] = value
    return out


def whole(extent: int) -> int:
    """The extent filled up to whole quads."""
    return -(-extent // QUAD) * QUAD


def _filled(x: Bytes, depth: int, stored: DType = DType.I8) -> Tensor:
    """The bytes as `stored`, with zeros after them along `depth`; themselves if they are that."""
    extent = x.x.shape[depth]
    if whole(extent) == extent and x.x.dtype is stored:
        return x.x
    shape = [whole(n) if k == depth % x.x.rank else n for k, n in enumerate(x.x.shape)]

    def element(*i: Expr) -> Expr:
        value = stored_as(x.x[i], stored)
        return value if whole(extent) == extent else select(i[depth] < extent, value, 0)

    return compute(shape, element)


def sums_along(b: Tensor, summed: Sequence[int]) -> Compute:
    axes = [k % b.rank for k in summed]
    return reduce(ScalarOp.ADD, b, axes, False, lambda e: Cast(DType.I32, e))


def products_of_bytes(t: Tensor, kept: PackedWeights) -> Compute | None:
    """t as int32 numbers, computed from bytes; None if it is no sum that tiles of bytes compute."""
    if not isinstance(t, Compute) or not t.exact:
        return None
    if not t.dtype.is_float or t.reduction is None or t.reduction.op is not ScalarOp.ADD:
        return None
    convolution = find_convolution(t)
    made = _convolution(convolution, kept) if convolution else _matmul(t, kept)
    return made and replace(made, op=t.op, node=t.node)


@dataclass(frozen=True)
class Matmul:
    """sum over k of a[at] * b[bt], k being the last axis of a and the last but one of b."""

    a: Bytes
    at: tuple[Expr, ...]
    b: Bytes
    bt: tuple[Expr, ...]
    k: str
    depth: int

    def zero_points(self, left: DType, right: DType) -> tuple[Expr | None, Expr | None] | None:
        """Of both, stored as these types; None if they change along the sum."""
        za, zb = self.a.zero_at(self.at, left), self.b.zero_at(self.bt, right)
        along = any(z is not None and self.k in variables(z) for z in (za, zb))
        return None if along else (za, zb)


def find_matmul(t: Compute) -> Matmul | None:
    """The product of matrices of bytes that t is, if no sum of it leaves 32 bits."""
    assert t.reduction is not None
    match t.body:
        case Apply(op=ScalarOp.MUL, args=(Load(index=at) as left, Load(index=bt) as right)):
            a, b = bytes_of(left.buffer), bytes_of(right.buffer)
        case _:
            return None
    if a is None or b is None or len(t.reduction.axes) != 1 or len(bt) < 2 or not t.size:
        return None
    ((k, depth),) = t.reduction.axes
    rest = (*at[:-1], *bt[:-2], bt[-1])
    if at[-1] != Var(k) or bt[-2] != Var(k) or any(k in variables(i) for i in rest):
        return None
    return Matmul(a, at, b, bt, k, depth) if depth <= MAX_DEPTH else None


def _matmul(t: Compute, kept: PackedWeights) -> Compute | None:
    found = find_matmul(t)
    if found is None or (zeros := found.zero_points(DType.U8, DType.I8)) is None:
        return None
    at, bt, k, depth = found.at, found.bt, found.k, found.depth
    signed = Signed.of(found.b, -2, (-2,), kept)
    unsigned = _filled(found.a, -1, DType.U8)
    za, zb = zeros[0], None if signed.settled else zeros[1]
    product = Apply(ScalarOp.MUL, (wide(Load(unsigned, at)), wide(Load(signed.b, bt))))
    raw = restated(t, product, ((k, whole(depth)),))
    if find_contraction(raw) is None:
        return None
    of_rows = None if zb is None else Load(sums_along(unsigned, (-1,)), at[:-1])
    sums = Load(signed.sums, (*bt[:-2], bt[-1]))
    body = corrected(Load(raw, tuple(map(Var, t.axes))), za, sums, zb, of_rows, depth)
    return restated(t, body)


def wide(e: Expr) -> Expr:
    return Cast(DType.I32, e)


def restated(t: Compute, body: Expr, over: Sequence[tuple[str, int]] = ()) -> Compute:
    """A new tensor of t's shape from a body over t's axes; a sum over axes of these names."""

    def element(*axes: Expr) -> Expr:
        names = (*t.axes, *(a for a, _ in over))
        return substitute(body, dict(zip(names, axes, strict=True)))  # type: ignore[return-value]

    extents = [n for _, n in over]
    made = compute(t.shape, element, reduce=ScalarOp.ADD if over else None, over=extents)
    return replace(made, exact=bool(over), op=t.op, node=t.node)


def corrected(
    value: Expr,
    za: Expr | None,
    sum_b: Expr | None,
    zb: Expr | None,
    sum_a: Expr | None,
    count: int,
) -> Expr:
    """The sum of differences from the sum of bytes."""
    if za is not None and sum_b is not None:
        value = value - za * sum_b
    if zb is not None and sum_a is not None:
        value = value - zb * (sum_a if za is None else sum_a - za * count)
    return value


def _convolution(c: Convolution, kept: PackedWeights) -> Compute | None:
    image, weights = bytes_of(c.image), constant_weights(c)
    if image is None or weights is None or c.groups > 1 or not c.result.size:
        return None
    if c.taps * c.inputs > MAX_DEPTH:
        return None
    rank = len(c.dims)
    signed = Signed.of(weights, 1, range(1, rank + 2), kept)
    lines = padded_lines(c, image, DType.U8, whole(c.inputs))

    def element(n: Expr, o: Expr, *axes: Expr) -> Expr:
        out, k, i = axes[:rank], axes[rank:-1], axes[-1]
        return wide(lines[(n, *places(c, out, k), i)]) * wide(signed.b[(o, i, *k)])

    over = [*(d.kernel for d in c.dims), whole(c.inputs)]
    raw = compute(c.result.shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)
    raw = replace(raw, exact=True, op=c.result.op, node=c.result.node)
    if find_contraction(raw) is None:
        return None
    pixels = None if signed.settled else window_sums(c, lines)

    def less_zero_points(*i: Expr) -> Expr:
        za = image.zero_at(i, DType.U8)
        if pixels is None:
            return corrected(raw[i], za, signed.sums[i[1]], None, None, 0)
        zb = weights.zero_at((i[1], *[index_const(0)] * (rank + 1)), DType.I8)
        of_pixels = pixels[(i[0], *i[2:])]
        return corrected(raw[i], za, signed.sums[i[1]], zb, of_pixels, c.taps * c.inputs)

    return compute(c.result.shape, less_zero_points, channels_last=True)


def constant_weights(c: Convolution) -> Bytes | None:
    """The convolution's weights, if they are constant bytes."""
    match c.weight_factor:
        case Load(buffer=b):
            found = bytes_of(b)
            return found if found and isinstance(found.x, Constant) else None
    return None


def places(c: Convolution, out: Sequence[Expr], k: Sequence[Expr]) -> list[Expr]:
    """Where in the padded image a tap is."""
    return [a * d.stride + b * d.dilation for d, a, b in zip(c.dims, out, k, strict=True)]


def padded_lines(c: Convolution, x: Bytes, stored: DType, channels: int) -> Tensor:
    """The image as [batch, spatial..., channels] of bytes stored as `stored`: zeros after its own
    channels, and zero points around it."""
    extents = [max((d.out - 1) * d.stride + d.reach, 1) for d in c.dims]
    reach = [replace(d, out=n - d.kernel + 1) for d, n in zip(c.dims, extents, strict=True)]

    def element(n: Expr, *axes: Expr) -> Expr:
        positions = [p - d.before if d.before else p for p, d in zip(axes, c.dims, strict=False)]
        at = (n, axes[-1], *positions)
        value, condition = stored_as(x.x[at], stored), guard(reach, positions)
        if condition is not None:
            zero = x.zero_at(at, stored)
            value = select(condition, value, 0 if zero is None else Cast(stored, zero))
        return value if channels == c.inputs else select(axes[-1] < c.inputs, value, 0)

    return replace(compute((c.batch, *extents, channels), element), op=c.result.op)


def window_sums(c: Convolution, lines: Tensor) -> Compute:
    """The sums of the pixels in each window: over channels first, then along each dimension."""
    sums, rank = sums_along(lines, (-1,)), len(c.dims)
    for k in reversed(range(rank)):
        sums = _along(sums, k + 1, c.dims[k])
    return sums


def _along(sums: Compute, at: int, d: Window) -> Compute:
    """The sums over the windows along one dimension; small ones written out, which is faster."""
    if d.kernel == 1 and d.stride == 1:
        return sums
    shape = [d.out if k == at else n for k, n in enumerate(sums.shape)]

    def tap(i: Sequence[Expr], k: Expr | int) -> Expr:
        return sums[[*i[:at], i[at] * d.stride + k * d.dilation, *i[at + 1 :]]]

    def written_out(*i: Expr) -> Expr:
        return sum((tap(i, k) for k in range(1, d.kernel)), start=tap(i, 0))

    if d.kernel <= WRITTEN_OUT:
        return compute(shape, written_out)
    over = [d.kernel]
    return compute(shape, lambda *i: tap(i[:-1], i[-1]), reduce=ScalarOp.ADD, over=over)
