"""Operators that only move elements: each is an index map, which fusion reads through.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tilewright.loops.ir import Block as Sequential
from tilewright.loops.ir import Expr, For, Load, Operand, Stmt, Store, Var, index_const
from tilewright.ops.common import (
    broadcast_index,
    broadcast_shape,
    fail,
    maximum,
    minimum,
    normalize_axis,
    reshape_to,
    select,
    view,
)
from tilewright.ops.registry import op
from tilewright.ops.tensor import (
    NestOutput,
    Tensor,
    compute,
    fresh_axis,
    known_ints,
    nest,
)

SELECT_LIMIT = 4  # operands that Concat chooses between; more are copied one after the other


@op("Reshape")
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    dims = known_ints(shape)
    if not allowzero:
        if any(d == 0 and k >= x.rank for k, d in enumerate(dims)):
            raise fail(f"a 0 in shape {dims} has no dimension of the operand to copy")
        dims = [x.shape[k] if d == 0 else d for k, d in enumerate(dims)]
    if dims.count(-1) > 1 or any(d < -1 for d in dims):
        raise fail(f"shape {dims} is not a shape")
    if -1 in dims:
        rest = prod(d for d in dims if d != -1)
        if rest == 0 or x.size % rest:
            raise fail(f"{x.size} elements cannot take the shape {dims}")
        dims[dims.index(-1)] = x.size // rest
    return reshape_to(x, dims)


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if not -x.rank <= axis <= x.rank:
        raise fail(f"axis {axis} is out of range for rank {x.rank}")
    at = axis % x.rank if axis < 0 else axis
    return reshape_to(x, (prod(x.shape[:at]), prod(x.shape[at:])))


@op("Squeeze")
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return reshape_to(x, [n for n in x.shape if n != 1])
    gone = {normalize_axis(a, x.rank) for a in known_ints(axes)}
    if any(x.shape[a] != 1 for a in gone):
        raise fail(f"axes {sorted(gone)} of shape {x.shape} are not all 1")
    return reshape_to(x, [n for k, n in enumerate(x.shape) if k not in gone])


@op("Unsqueeze")
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    given = known_ints(axes)
    rank = x.rank + len(given)
    new = {normalize_axis(a, rank) for a in given}
    if len(new) != len(given):
        raise fail(f"axes {given} name a dimension twice")
    rest = iter(x.shape)
    return reshape_to(x, [1 if k in new else next(rest) for k in range(rank)])


@op("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    order = list(perm) if perm is not None else list(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise fail(f"perm {order} is no permutation of {x.rank} dimensions")
    if order == list(range(x.rank)):
        return x
    place = [order.index(k) for k in range(x.rank)]
    return view(x, [x.shape[p] for p in order], lambda *i: [i[p] for p in place])


@op("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    target = broadcast_shape(x.shape, known_ints(shape))
    return x if target == x.shape else view(x, target, lambda *i: broadcast_index(i, x.shape))


@op("Tile")
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    times = known_ints(repeats)
    if len(times) != x.rank or any(t < 0 for t in times):
        raise fail(f"repeats {times} do not fit rank {x.rank}")
    if all(t == 1 for t in times):
        return x
    shape = [n * t for n, t in zip(x.shape, times, strict=True)]
    if not prod(shape):
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    return view(
        x,
        shape,
        lambda *i: [v if t == 1 else v % n for v, n, t in zip(i, x.shape, times, strict=True)],
    )


@op("Concat")
def concat(*parts: Tensor, axis: int) -> Tensor:
    rank = parts[0].rank
    at = normalize_axis(axis, rank)
    for p in parts[1:]:
        same = p.rank == rank and all(
            a == b for k, (a, b) in enumerate(zip(p.shape, parts[0].shape, strict=False)) if k != at
        )
        if not same or p.dtype is not parts[0].dtype:
            raise fail(f"shapes {[q.shape for q in parts]} cannot be joined along axis {at}")
    kept = [p for p in parts if p.shape[at]]
    if len(kept) <= 1:
        return kept[0] if kept else parts[0]
    if len(kept) <= SELECT_LIMIT:
        return _select_parts(kept, at)
    return _copy_parts(kept, at)


def _select_parts(parts: Sequence[Tensor], axis: int) -> Tensor:
    starts = np.cumsum([0, *(p.shape[axis] for p in parts)])
    shape = list(parts[0].shape)
    shape[axis] = int(starts[-1])

    def element(*i: Expr) -> Operand:
        def read(k: int) -> Load:
            start = int(starts[k])
            return parts[k][[v - start if d == axis and start else v for d, v in enumerate(i)]]

        value: Operand = read(len(parts) - 1)
        for k in range(len(parts) - 2, -1, -1):
            value = select(i[axis] < int(starts[k + 1]), read(k), value)
        return value

    return compute(shape, element)


def _copy_parts(parts: Sequence[Tensor], axis: int) -> Tensor:
    starts = np.cumsum([0, *(p.shape[axis] for p in parts)])
    shape = list(parts[0].shape)
    shape[axis] = int(starts[-1])

    def body(out: NestOutput) -> Stmt:
        return Sequential(
            tuple(_copy(p, out, axis, int(start)) for p, start in zip(parts, starts, strict=False))
        )

    return nest([(shape, parts[0].dtype)], body)[0]


def _copy(part: Tensor, out: Tensor, axis: int, start: int) -> Stmt:
    axes = [fresh_axis() for _ in part.shape]
    index = tuple(Var(a) for a in axes)
    place = tuple(v + start if k == axis and start else v for k, v in enumerate(index))
    statement: Stmt = Store(out, place, part[index])
    for a, n in reversed(list(zip(axes, part.shape, strict=True))):
        statement = For(a, index_const(n), statement)
    return statement


@op("Split")
def split(
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    at = normalize_axis(axis, x.rank)
    n = x.shape[at]
    if sizes is not None:
        lengths = known_ints(sizes)
    else:
        count = num_outputs or outputs
        step = -(-n // count)
        lengths = [min(step, n - k * step) for k in range(count)]
    if sum(lengths) != n or any(s < 0 for s in lengths):
        raise fail(f"sizes {lengths} do not add up to {n}")
    starts = np.cumsum([0, *lengths])
    return tuple(_window(x, at, int(a), s) for a, s in zip(starts, lengths, strict=False))


def _window(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    if length == x.shape[axis]:
        return x
    shape = [length if k == axis else n for k, n in enumerate(x.shape)]
    return view(x, shape, lambda *i: [v + start if k == axis else v for k, v in enumerate(i)])


@op("Slice")
def slice_(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = known_ints(starts), known_ints(ends)
    dims = known_ints(axes) if axes is not None else list(range(len(first)))
    strides = known_ints(steps) if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(dims) == len(strides) or 0 in strides:
        raise fail(f"starts {first}, ends {last}, axes {dims} and steps {strides} do not fit")
    ranges = {k: range(n) for k, n in enumerate(x.shape)}
    for a, b, d, s in zip(first, last, dims, strides, strict=True):
        axis = normalize_axis(d, x.rank)
        ranges[axis] = range(x.shape[axis])[slice(a, _end(b, s, x.shape[axis]), s)]
    shape = [len(ranges[k]) for k in range(x.rank)]
    if all(ranges[k] == range(n) for k, n in enumerate(x.shape)):
        return x
    if not prod(shape):
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    return view(x, shape, lambda *i: [_step(v, ranges[k]) for k, v in enumerate(i)])


def _end(end: int, step: int, extent: int) -> int | None:
    """ONNX's end for Python's slice: far below zero means past the first element going down."""
    return None if step < 0 and end < -extent else end


def _step(i: Expr, r: range) -> Expr:
    scaled: Expr = i if r.step == 1 else i * r.step
    return scaled if r.start == 0 else scaled + r.start


@op("Pad")
def pad(
    x: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    amounts = known_ints(pads)
    dims = [normalize_axis(a, x.rank) for a in known_ints(axes)] if axes else list(range(x.rank))
    if len(amounts) != 2 * len(dims):
        raise fail(f"{len(amounts)} pads for {len(dims)} axes")
    before, after = [0] * x.rank, [0] * x.rank
    for k, d in enumerate(dims):
        before[d], after[d] = amounts[k], amounts[k + len(dims)]
    shape = [n + a + b for n, a, b in zip(x.shape, before, after, strict=True)]
    if any(n < 0 for n in shape):
        raise fail(f"pads {amounts} leave less than nothing of shape {x.shape}")
    if not any(before) and not any(after):
        return x
    if mode == "constant":
        return _pad_constant(x, shape, before, after, constant_value)
    if mode not in ("reflect", "edge", "wrap") or (x.size == 0 and 0 not in shape):
        raise fail(f"mode {mode!r} cannot pad shape {x.shape}")
    return view(
        x,
        shape,
        lambda *i: [
            _mirror(v - b, n, mode) if b or a else v
            for v, n, b, a in zip(i, x.shape, before, after, strict=True)
        ],
    )


def _pad_constant(
    x: Tensor, shape: list[int], before: list[int], after: list[int], value: Tensor | None
) -> Tensor:
    def element(*i: Expr) -> Operand:
        at = [v - b if b else v for v, b in zip(i, before, strict=True)]
        fill: Operand = value[[0] * value.rank] if value is not None else 0
        guards = [
            g
            for v, n, b, a in zip(at, x.shape, before, after, strict=True)
            for g in ([v >= 0] if b > 0 else []) + ([v < n] if a > 0 else [])
        ]
        if not guards:
            return x[at]
        whole: Expr = guards[0]
        for g in guards[1:]:
            whole = whole & g
        return select(whole, x[at], fill)

    if x.size == 0:
        return compute(
            shape, lambda *i: value[[0] * value.rank] if value is not None else 0, dtype=x.dtype
        )
    return compute(shape, element, dtype=x.dtype)


def _mirror(i: Expr, n: int, mode: str) -> Expr:
    if mode == "edge":
        return minimum(maximum(i, 0), n - 1)
    if mode == "wrap":
        return (i + n * 1024) % n
    if n == 1:
        return index_const(0)
    period = 2 * (n - 1)
    folded = (i + period * 1024) % period
    return minimum(folded, index_const(period) - folded)


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = _image(x)
    b = blocksize
    if c % (b * b):
        raise fail(f"{c} channels cannot be cut into blocks of {b}x{b}")
    k = c // (b * b)
    if mode == "DCR":
        return view(
            x,
            (n, k, h * b, w * b),
            lambda *i: [i[0], (i[2] % b * b + i[3] % b) * k + i[1], i[2] // b, i[3] // b],
        )
    return view(
        x,
        (n, k, h * b, w * b),
        lambda *i: [i[0], i[1] * (b * b) + i[2] % b * b + i[3] % b, i[2] // b, i[3] // b],
    )


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = _image(x)
    b = blocksize
    if h % b or w % b:
        raise fail(f"{h}x{w} cannot be cut into blocks of {b}x{b}")

    def index(*i: Expr) -> list[Expr]:
        channel, block = (
            (i[1] % c, i[1] // c) if mode == "DCR" else (i[1] // (b * b), i[1] % (b * b))
        )
        return [i[0], channel, i[2] * b + block // b, i[3] * b + block % b]

    return view(x, (n, c * b * b, h // b, w // b), index)


def _image(x: Tensor) -> tuple[int, int, int, int]:
    if x.rank != 4:
        raise fail(f"rank 4 is expected, not {x.rank}")
    n, c, h, w = x.shape
    return n, c, h, w


@op("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    if x.rank < 2:
        raise fail(f"a matrix is expected, not rank {x.rank}")
    shift: Operand = k[[0] * k.rank] if k is not None else 0

    def element(*i: Expr) -> Operand:
        ahead = i[-1] - i[-2]
        keep = ahead >= shift if upper else ahead <= shift
        return select(keep, x[i], 0)

    return compute(x.shape, element)
